//! Pools and volumes: files in folders.

use super::App;
use super::projects::check_quota;
use crate::{Error, util};
use api::ByteSize;
use api::v1::error::ErrorCode;
use api::v1::name;
use api::v1::storage::{DEFAULT_POOL, Pool, PoolDriver, PoolParams, Volume, VolumeParams};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use store::{PoolRecord, Records, VmRecord, VolumeRecord};

/// Largest volume: what a file can be, less what file systems differ in.
const VOLUME_SIZE_MAX: u64 = 1 << 43;
const SECTOR_SIZE: u64 = 512;

fn file(pool: &PoolRecord, volume: &VolumeRecord) -> PathBuf {
    Path::new(&pool.path).join(format!("{}.img", volume.id))
}

/// Machines that have the volume as a disk.
fn users(vms: &[VmRecord], volume: &str) -> Vec<String> {
    let has = |vm: &&VmRecord| vm.config.disks.iter().any(|disk| disk.volume.as_deref() == Some(volume));
    vms.iter().filter(has).map(|vm| vm.name.clone()).collect()
}

fn view(records: &Records<'_>, vms: &[VmRecord], record: VolumeRecord) -> Result<Volume, Error> {
    let path = file(&records.pool(&record.pool)?, &record);
    Ok(Volume {
        vms: users(vms, &record.name),
        used_bytes: path.metadata().map_or(0, |metadata| metadata.blocks() * SECTOR_SIZE),
        name: record.name,
        project: record.project,
        pool: record.pool,
        size: ByteSize(record.size),
        created: record.created,
    })
}

impl App {
    pub(super) fn ensure_default_pool(&self) -> Result<(), store::Error> {
        let path = self.config.paths.default_pool().to_string_lossy().into_owned();
        self.store.write(|records| match records.pool(DEFAULT_POOL) {
            Ok(_) => Ok(()),
            Err(_) => {
                records.pool_insert(&PoolRecord { name: DEFAULT_POOL.into(), path, created: util::now() })
            }
        })
    }

    /// Where the volumes of a machine are, by name.
    pub(super) fn volume_paths(&self, vm: &VmRecord) -> Result<HashMap<String, PathBuf>, Error> {
        self.read(|records| {
            let volumes = vm.config.disks.iter().filter_map(|disk| disk.volume.as_deref());
            volumes
                .map(|name| {
                    let volume = records.volume(&vm.project, name)?;
                    Ok((name.to_owned(), file(&records.pool(&volume.pool)?, &volume)))
                })
                .collect()
        })
    }

    pub(crate) fn volume(&self, project: &str, name: &str) -> Result<Volume, Error> {
        self.read(|records| {
            let volume = records.volume(project, name)?;
            view(records, &records.vms(project, "", u32::MAX)?, volume)
        })
    }

    pub(crate) fn volumes(&self, project: &str, after: &str, limit: u32) -> Result<Vec<Volume>, Error> {
        self.read(|records| {
            let vms = records.vms(project, "", u32::MAX)?;
            let volumes = records.volumes(project, after, limit)?;
            volumes.into_iter().map(|volume| view(records, &vms, volume)).collect()
        })
    }

    pub(crate) fn volume_create(&self, project: &str, params: VolumeParams) -> Result<Volume, Error> {
        name::check("volume", &params.name)?;
        let size = params.size.0;
        if size == 0 || size > VOLUME_SIZE_MAX || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("a volume cannot be of {} bytes", params.size),
            )
            .with_remedy("choose a multiple of 512 bytes, at most 8T, like 10G"));
        }
        let volume = VolumeRecord {
            project: project.into(),
            name: params.name,
            id: util::uuid(),
            pool: params.pool.unwrap_or_else(|| DEFAULT_POOL.into()),
            size,
            created: util::now(),
        };
        let pool = self.read(|records| {
            records.pool(&volume.pool).map_err(|e| Error::new(ErrorCode::Invalid, e.to_string()))
        })?;
        // The file first: a record without a file would be a lie, a file without a record is only clutter.
        let path = file(&pool, &volume);
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let sized = made.and_then(|file| file.set_len(size).and_then(|()| file.sync_all()));
        let result = sized
            .map_err(|e| Error::internal(format!("the volume cannot be made in the pool {:?}", pool.name), e))
            .and_then(|()| {
                self.write(|records| {
                    let before = records.usage(project)?;
                    records.volume_insert(&volume)?;
                    check_quota(records, project, before)
                })
            });
        if let Err(error) = result {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        self.volume(project, &volume.name)
    }

    pub(crate) fn volume_delete(&self, project: &str, name: &str) -> Result<(), Error> {
        let path = self.write(|records| {
            let volume = records.volume(project, name)?;
            let users = users(&records.vms(project, "", u32::MAX)?, name);
            if !users.is_empty() {
                let message = format!("the volume {name:?} is a disk of {}", users.join(", "));
                return Err(Error::new(ErrorCode::InUse, message).with_remedy("take it out of there first"));
            }
            let path = file(&records.pool(&volume.pool)?, &volume);
            records.volume_delete(&volume.id)?;
            Ok(path)
        })?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::internal(format!("the file {path:?} of the volume cannot be removed"), e))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn pools(&self) -> Result<Vec<Pool>, Error> {
        self.read(|records| {
            Ok(records.pools()?.into_iter().map(|(record, volumes)| pool_view(record, volumes)).collect())
        })
    }

    pub(crate) fn pool_create(&self, params: PoolParams) -> Result<Pool, Error> {
        name::check("pool", &params.name)?;
        let path = PathBuf::from(&params.path);
        if !path.is_absolute() || params.path.contains('\0') {
            return Err(Error::new(ErrorCode::Invalid, format!("{:?} is no absolute path", params.path)));
        }
        let record = PoolRecord { name: params.name, path: params.path, created: util::now() };
        self.write(|records| {
            records.pool_insert(&record)?;
            crate::config::private_folder(&path).map_err(|e| {
                let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
                Error::new(ErrorCode::Invalid, e.to_string()).with_cause(cause)
            })
        })?;
        Ok(pool_view(record, 0))
    }

    pub(crate) fn pool_delete(&self, name: &str) -> Result<(), Error> {
        if name == DEFAULT_POOL {
            return Err(Error::new(ErrorCode::InUse, "the default pool cannot be removed"));
        }
        self.write(|records| {
            let used = records.pools()?.into_iter().any(|(pool, volumes)| pool.name == name && volumes > 0);
            if used {
                return Err(Error::new(ErrorCode::InUse, format!("the pool {name:?} holds volumes"))
                    .with_remedy("remove them first"));
            }
            Ok(records.pool_delete(name)?)
        })
    }
}

fn pool_view(record: PoolRecord, volumes: u64) -> Pool {
    let space = rustix::fs::statvfs(&record.path).ok();
    Pool {
        size_bytes: space.as_ref().map_or(0, |space| space.f_blocks.saturating_mul(space.f_frsize)),
        available_bytes: space.as_ref().map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize)),
        name: record.name,
        driver: PoolDriver::Directory,
        path: record.path,
        volumes,
        created: record.created,
    }
}
