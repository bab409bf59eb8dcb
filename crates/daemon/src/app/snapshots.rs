//! Snapshots of machines, going back to them, and suspending.
//!
//! A worker makes a snapshot in a folder of its machine (`saving`); when it is whole, it is moved to the folder of all
//! snapshots, where disks of any machine may stand on it. `sweep` takes it away when nobody needs it.

use super::guest::Frozen;
use super::vms::paths;
use super::work::Work;
use super::{App, Machine};
use crate::{Error, util};
use api::v1::error::ErrorCode;
use api::v1::name;
use api::v1::snapshot::{Snapshot, SnapshotParams};
use api::v1::vm::{StopParams, VmConfig, VmState};
use api::worker::control::{Reply, Request, SnapshotDone, SnapshotPhase};
use api::worker::snapshot::MANIFEST_FILE;
use image::{Instance, InstanceDisk};
use rustix::fs::OFlags;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::{Records, Resume, Sizes, SnapshotRecord, VmRecord};

/// How long a snapshot may take: the guest goes on meanwhile.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// What is kept of a snapshot's disks, in its folder.
const DISKS_FILE: &str = "disks.json";
/// Longest manifest of a snapshot that is read, in bytes.
const MANIFEST_LEN_MAX: u64 = 4 << 20;
/// How often the worker is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(200);

impl App {
    /// The snapshots of a machine, the oldest first.
    pub(crate) fn snapshots(&self, vm: &VmRecord) -> Result<Vec<Snapshot>, Error> {
        let found = self.read(|records| Ok(records.snapshots(&vm.id)?))?;
        Ok(found.into_iter().map(|record| view(vm, record)).collect())
    }

    pub(crate) fn snapshot(&self, vm: &VmRecord, name: &str) -> Result<Snapshot, Error> {
        Ok(view(vm, self.snapshot_record(vm, name)?))
    }

    pub(super) fn snapshot_record(&self, vm: &VmRecord, name: &str) -> Result<SnapshotRecord, Error> {
        self.read(|records| Ok(records.snapshot(&vm.id, name)?)).map_err(|error| match error.code() {
            ErrorCode::NotFound => error.with_remedy(format!("see `arnia snapshot ls {}`", vm.name)),
            _ => error,
        })
    }

    pub(super) fn snapshot_folder(&self, id: &str) -> PathBuf {
        self.config.paths.snapshots().join(id)
    }

    /// What is refused before an operation makes a snapshot.
    pub(crate) fn check_snapshot(&self, vm: &VmRecord, params: &SnapshotParams) -> Result<(), Error> {
        name::check("snapshot", &params.name)?;
        super::people::check_description(&params.description)?;
        if self.read(|records| Ok(records.snapshot(&vm.id, &params.name).is_ok()))? {
            let message = format!("{} has a snapshot {:?} already", vm.name, params.name);
            return Err(Error::new(ErrorCode::AlreadyExists, message).with_remedy("choose another name"));
        }
        self.running(vm).map(drop)
    }

    /// Makes a snapshot with a name.
    pub(super) async fn snapshot_create(
        self: &Arc<App>,
        vm: &str,
        id: &str,
        params: SnapshotParams,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let machine = self.machine(vm);
        let _lifecycle = machine.lifecycle.lock().await;
        let vm = self.read(|records| Ok(records.vm_by_id(vm)?))?;
        // While this is held, it is not taken for one that nobody needs.
        let _no_sweep = self.standing.read().await;
        let bytes = match self.snapshot_folder(id).exists() {
            // An earlier daemon has made it, and was killed before it wrote that down.
            true => {
                self.keep_disks(&vm, id)?;
                0
            }
            false => {
                let frozen = match params.freeze {
                    true => {
                        work.begin("freezing the guest's file systems", None);
                        Some(self.guest_freeze(&machine, &vm).await?)
                    }
                    false => None,
                };
                self.save(&machine, &vm, id, Saved { disks: true, frozen }, work).await?.bytes
            }
        };
        let record = SnapshotRecord {
            id: id.into(),
            vm: vm.id.clone(),
            name: params.name,
            description: params.description,
            config: vm.config,
            bytes,
            created: util::now(),
        };
        self.write(|records| Ok(records.snapshot_insert(&record)?))
    }

    /// Removes a snapshot. What stands on it keeps it on the host's disk.
    pub(crate) async fn snapshot_delete(self: &Arc<App>, vm: &VmRecord, name: &str) -> Result<(), Error> {
        let record = self.snapshot_record(vm, name)?;
        self.write(|records| Ok(records.snapshot_delete(&record.id)?))?;
        self.sweep().await;
        Ok(())
    }

    /// Has a machine saved, and moves what comes of it to the other snapshots. The caller holds the machine's
    /// lifecycle, and keeps the sweeper away until something refers to the snapshot.
    pub(super) async fn save(
        &self,
        machine: &Machine,
        vm: &VmRecord,
        id: &str,
        saved: Saved<'_>,
        work: &Work,
    ) -> Result<SnapshotDone, Error> {
        let Saved { disks, mut frozen } = saved;
        let done = self.save_thawing(machine, vm, id, disks, &mut frozen, work).await;
        match frozen {
            // Whatever became of the snapshot, the guest goes on.
            Some(frozen) => frozen.thaw().await.and(done),
            None => done,
        }
    }

    /// Does so, and thaws the guest as soon as its moment is past.
    async fn save_thawing(
        &self,
        machine: &Machine,
        vm: &VmRecord,
        id: &str,
        disks: bool,
        frozen: &mut Option<Frozen<'_>>,
        work: &Work,
    ) -> Result<SnapshotDone, Error> {
        self.running(vm)?;
        let saved = self.saving_folder(&vm.id)?.join(id);
        // Left by a daemon that was killed.
        let _ = std::fs::remove_dir_all(&saved);
        work.begin("saving memory and disks", None);
        let control = self.folder(&machine.id).control();
        let request = control.ask_long(Request::Snapshot { name: id.into(), parent: None, disks }, PATIENCE);
        tokio::pin!(request);
        let mut told = None;
        let reply = loop {
            tokio::select! {
                reply = &mut request => break reply?,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if work.is_cancelled() {
                let _ = control.ask(Request::CancelSnapshot {}).await;
            }
            if let Some(progress) = control.status().await.ok().and_then(|status| status.snapshot) {
                if told != Some(progress.phase) {
                    told = Some(progress.phase);
                    let what = match progress.phase {
                        SnapshotPhase::Disks => "copying disks",
                        SnapshotPhase::Memory => "copying memory",
                        SnapshotPhase::Sync => "making it safe on disk",
                    };
                    work.begin(what, Some(progress.total_bytes));
                }
                work.reach(progress.done_bytes);
                if progress.phase == SnapshotPhase::Sync
                    && let Some(frozen) = frozen.take()
                {
                    frozen.thaw().await?;
                }
            }
        };
        let Reply::Snapshot(done) = reply else {
            return Err(Error::new(ErrorCode::Internal, "the machine's process answered something else"));
        };
        let folder = self.snapshot_folder(id);
        std::fs::rename(&saved, &folder)
            .map_err(|e| Error::internal("the snapshot cannot be put in its place", e))?;
        if let Err(error) = self.keep_disks(vm, id) {
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error);
        }
        Ok(done)
    }

    /// Writes down what the disks of a snapshot are, now that it is out of its machine's reach: what the machine's process
    /// says of them, and what their images name, is looked at this once and believed only as far as it can be true.
    fn keep_disks(&self, vm: &VmRecord, id: &str) -> Result<(), Error> {
        let (folder, place) = (self.snapshot_folder(id), self.instance_folder(&vm.id));
        let disks = match place.join(image::INSTANCE_FILE).exists() {
            true => Instance::load(&place)?.disks,
            false => Vec::new(),
        };
        let layers = layers(&folder);
        let kept = disks.iter().enumerate().map(|(index, disk)| match layers.get(index).cloned().flatten() {
            Some(layer) => Ok(disk.kept(folder.join(layer))?),
            None => {
                let path = folder.join(format!("disk{index}.img"));
                Ok(InstanceDisk { path, stands_on: Vec::new() })
            }
        });
        let kept = kept.collect::<Result<Vec<_>, Error>>()?;
        let failed = |e: &dyn std::fmt::Display| Error::internal("the snapshot cannot be written down", e);
        let text = serde_json::to_vec(&kept).map_err(|e| failed(&e))?;
        let draft = folder.join(DISKS_FILE).with_extension("new");
        let write = || {
            // Whatever lies there is the machine's.
            let _ = std::fs::remove_file(&draft);
            std::fs::File::create_new(&draft).and_then(|mut file| file.write_all(&text))?;
            std::fs::rename(&draft, folder.join(DISKS_FILE))
        };
        write().map_err(|e| failed(&e))
    }

    /// Lets a machine go on from one of its snapshots. What it is now is lost.
    pub(super) async fn snapshot_restore(
        self: &Arc<App>,
        id: &str,
        snapshot: &str,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
        let record = self.snapshot_record(&vm, snapshot)?;
        let folder = self.snapshot_folder(&record.id);
        self.check_restorable(&vm, snapshot)?;
        self.stop_locked(&machine, StopParams { force: true, timeout: None }).await?;
        work.begin("putting the disks back", None);
        let place = self.instance_folder(&vm.id);
        if place.join(image::INSTANCE_FILE).exists() {
            let _no_sweep = self.standing.read().await;
            let folder = folder.clone();
            on_thread(move || {
                let instance = Instance::load(&place)?;
                let bases = saved_disks_of(&folder, &instance)?;
                Ok(instance.put_over(&place, &bases)?)
            })
            .await?;
        }
        {
            let (app, vm, record, folder) = (self.clone(), vm.clone(), record.clone(), folder.clone());
            on_thread(move || app.restore_volumes(&vm, &record, &folder)).await?;
        }
        let vm = self.write(|records| {
            let config = restored_config(records, &vm, &record)?;
            let before = records.usage(&vm.project)?;
            let vm = match vm.config == config {
                true => vm.clone(),
                false => records.vm_update(&vm.id, vm.revision, &vm.name, &config)?,
            };
            super::projects::check_quota(records, &vm.project, before)?;
            let resume = Resume { snapshot: folder.clone(), other: false };
            records.vm_set_resume(&vm.id, Some(&resume))?;
            Ok(VmRecord { resume: Some(resume), ..vm })
        })?;
        self.launch(&machine, &vm, work).await
    }

    /// Refuses a machine that cannot be again what it was, before anything of it is lost.
    pub(crate) fn check_restorable(&self, vm: &VmRecord, snapshot: &str) -> Result<(), Error> {
        let record = self.snapshot_record(vm, snapshot)?;
        self.read(|records| {
            let config = restored_config(records, vm, &record)?;
            let before = records.usage(&vm.project)?;
            let (now, mut after) = (vm.counted(), before);
            after.cpus = after.cpus.saturating_sub(now.cpus.into()) + u64::from(config.cpus);
            after.memory_bytes = after.memory_bytes.saturating_sub(now.memory.0);
            after.memory_bytes = after.memory_bytes.saturating_add(config.memory.0);
            super::projects::check_usage(records, &vm.project, &before, &after)
        })?;
        let disks = &record.config.disks;
        if disks != &vm.config.disks {
            return Err(Error::new(ErrorCode::WrongState, "the machine has other disks than at that time")
                .with_remedy(format!(
                    "make another machine of it: `arnia clone {}@{} NEW`",
                    vm.name, record.name
                )));
        }
        match disks.iter().find(|disk| disk.path.is_some() && !disk.read_only) {
            Some(disk) => Err(Error::new(
                ErrorCode::Unsupported,
                format!(
                    "the disk {} is a file of the host, which is not put back",
                    disk.path.as_deref().unwrap_or("")
                ),
            )
            .with_remedy("use volumes for machines that shall go back to snapshots")),
            None => Ok(()),
        }
    }

    /// Gives volumes the contents that they had.
    fn restore_volumes(&self, vm: &VmRecord, record: &SnapshotRecord, folder: &Path) -> Result<(), Error> {
        let paths = self.volume_paths(vm)?;
        let first = record_disks(self, vm);
        for (index, disk) in record.config.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only) {
            let Some(path) = disk.volume.as_ref().and_then(|volume| paths.get(volume)) else { continue };
            let draft = path.with_extension("restoring");
            let _ = std::fs::remove_file(&draft);
            let saved = folder.join(format!("disk{}.img", first + index));
            image::copy_sparse(&saved, &draft, &mut image::Silent)?;
            std::fs::rename(&draft, path)
                .map_err(|e| Error::internal(format!("the volume {path:?} cannot be put back"), e))?;
        }
        Ok(())
    }

    /// Saves a machine's memory on the host's disk and ends its process; its next start goes on from there.
    pub(super) async fn suspend(self: &Arc<App>, id: &str, work: &Arc<Work>) -> Result<(), Error> {
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
        if machine.state() == VmState::Suspended {
            return Ok(());
        }
        self.running(&vm)?;
        let control = self.folder(&vm.id).control();
        let was_running = machine.state() == VmState::Running;
        // Before the guest stands still, for a sweep may take a while.
        let _no_sweep = self.standing.read().await;
        if was_running {
            control.ask(Request::Pause {}).await?;
        }
        let snapshot = util::uuid();
        if let Err(error) = self.save(&machine, &vm, &snapshot, Saved::memory(), work).await {
            if was_running {
                control.ask(Request::Resume {}).await?;
            }
            return Err(error);
        }
        let resume = Resume { snapshot: self.snapshot_folder(&snapshot), other: false };
        // It is off when its process has ended, and not before: a daemon that starts meanwhile looks for the process.
        self.write(|records| Ok(records.vm_set_resume(&vm.id, Some(&resume))?))?;
        self.stop_locked(&machine, StopParams { force: true, timeout: None }).await
    }
}

/// What a machine is when it goes on from a snapshot.
fn restored_config(records: &Records<'_>, vm: &VmRecord, record: &SnapshotRecord) -> Result<VmConfig, Error> {
    let mut config = still_given(record, vm)?;
    super::networks::assign_addresses(records, &vm.project, &vm.id, &mut config)?;
    Ok(config)
}

/// What a machine was at a snapshot, but with no folders of the host that it has no longer: who lets it, or a clone of it, go
/// on from there need not be one who may give it those.
///
/// # Errors
/// If it had other files of the host: a kernel, or a disk.
pub(super) fn still_given(record: &SnapshotRecord, vm: &VmRecord) -> Result<VmConfig, Error> {
    let (mut config, now) = (record.config.clone(), &vm.config);
    if let Some(gone) = paths(&record.config).find(|path| !paths(now).any(|known| known == *path)) {
        let message = format!("the machine had the host's file {gone:?} at that time, and has it no longer");
        return Err(Error::new(ErrorCode::WrongState, message)
            .with_remedy("have an admin give it back to the machine first"));
    }
    config.mounts.retain(|mount| now.mounts.contains(mount));
    Ok(config)
}

/// Does what may take long on a thread that may wait.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("the disks cannot be put back", e))?
}

/// What is saved of a machine beside its memory.
pub(super) struct Saved<'a> {
    disks: bool,
    /// The guest was frozen for it, and is thawed once its disks are as they will be.
    frozen: Option<Frozen<'a>>,
}

impl Saved<'_> {
    /// Nothing.
    fn memory() -> Saved<'static> {
        Saved { disks: false, frozen: None }
    }

    /// Its disks, as they are.
    pub(super) fn disks() -> Saved<'static> {
        Saved { disks: true, frozen: None }
    }
}

/// Whether a machine that does not run has its memory saved.
pub(super) fn is_suspended(vm: &VmRecord) -> bool {
    vm.resume.as_ref().is_some_and(|resume| !resume.other)
}

/// Disks that come before those of the configuration.
fn record_disks(app: &App, vm: &VmRecord) -> usize {
    let instance = Instance::load(&app.instance_folder(&vm.id));
    instance.map_or(0, |instance| instance.disks.len() + usize::from(instance.seed.is_some()))
}

/// The disks of an instance as they are in a snapshot of it: raw ones, or layers that it shares with machines.
pub(super) fn saved_disks(folder: &Path) -> Result<Vec<InstanceDisk>, Error> {
    let lost = |e: &dyn std::fmt::Display| Error::internal("the snapshot's disks are not known", e);
    match std::fs::read(folder.join(DISKS_FILE)) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| lost(&e)),
        // One that an earlier version has made: it has copies.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let copies = (0..).map(|index| folder.join(format!("disk{index}.img")));
            let copy = |path| InstanceDisk { path, stands_on: Vec::new() };
            Ok(copies.take_while(|path| path.exists()).map(copy).collect())
        }
        Err(e) => Err(lost(&e)),
    }
}

/// The same for a snapshot of this instance: all of its disks, or an error. Nothing may go on with fewer.
pub(super) fn saved_disks_of(folder: &Path, instance: &Instance) -> Result<Vec<InstanceDisk>, Error> {
    let disks = saved_disks(folder)?;
    let (found, needed) = (disks.len(), instance.disks.len());
    match found == needed {
        true => Ok(disks),
        false => Err(Error::new(
            ErrorCode::Internal,
            format!("{found} disks of the snapshot are known, and its machine has {needed}"),
        )),
    }
}

/// How large a machine is that goes on from a snapshot, as its manifest says.
pub(super) fn sizes_in(folder: &Path) -> Option<Sizes> {
    serde_json::from_value(manifest(folder)["machine"].take()).ok()
}

/// A snapshot's manifest; null where it cannot be read. It was written by the process of a guest: what is longer than any
/// manifest is not taken, nor what is no file, a pipe for which one would wait.
fn manifest(folder: &Path) -> serde_json::Value {
    let read = || {
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
        let file =
            std::fs::File::options().read(true).custom_flags(flags).open(folder.join(MANIFEST_FILE)).ok()?;
        let mut bytes = Vec::new();
        let is_file = file.metadata().is_ok_and(|there| there.is_file());
        is_file.then_some(file)?.take(MANIFEST_LEN_MAX).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice::<serde_json::Value>(&bytes).ok()
    };
    read().unwrap_or_default()["manifest"].take()
}

/// For each disk in a snapshot the file of its layer, if it is one, as its manifest says.
fn layers(folder: &Path) -> Vec<Option<String>> {
    let disks = manifest(folder)["disks"].as_array().cloned().unwrap_or_default();
    let layer =
        |disk: &serde_json::Value| Some(disk["layers"]["files"].as_array()?.first()?.as_str()?.to_owned());
    disks.iter().map(layer).collect()
}

fn view(vm: &VmRecord, record: SnapshotRecord) -> Snapshot {
    Snapshot {
        id: record.id,
        name: record.name,
        vm: vm.name.clone(),
        description: record.description,
        bytes: record.bytes,
        created: record.created,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::v1::mount::MountConfig;
    use api::v1::vm::DiskConfig;

    #[test]
    fn files_of_the_host_that_were_taken_away_do_not_come_back() {
        let mount = |folder: &str| MountConfig {
            folder: folder.into(),
            target: "/mnt".into(),
            read_only: true,
            owner: None,
            name: None,
        };
        let mut vm = VmRecord::new("v".into(), "default", "web".into(), VmConfig::new("/boot/vmlinuz"), 1);
        let mut record = SnapshotRecord {
            id: "s".into(),
            vm: vm.id.clone(),
            name: "before".into(),
            description: String::new(),
            config: vm.config.clone(),
            bytes: 0,
            created: 1,
        };
        record.config.mounts = vec![mount("/srv/secret"), mount("/srv/public")];
        vm.config.mounts = vec![mount("/srv/public")];
        let mounts =
            |record: &SnapshotRecord, vm: &VmRecord| still_given(record, vm).map(|it| it.mounts).ok();
        assert_eq!(mounts(&record, &vm), Some(vm.config.mounts.clone()));
        // The same folder with more rights is another matter.
        record.config.mounts[1].read_only = false;
        assert_eq!(mounts(&record, &vm), Some(Vec::new()));
        let disk =
            |path: &str| DiskConfig { path: Some(path.into()), read_only: true, ..DiskConfig::default() };
        record.config.disks.push(disk("/srv/secret.img"));
        assert_eq!(still_given(&record, &vm).unwrap_err().code(), ErrorCode::WrongState);
        vm.config.disks.push(disk("/srv/secret.img"));
        assert!(still_given(&record, &vm).is_ok());
        vm.config.boot.kernel = Some("/boot/vmlinuz.new".into());
        assert_eq!(still_given(&record, &vm).unwrap_err().code(), ErrorCode::WrongState);
    }
}
