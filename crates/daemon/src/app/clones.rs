//! Clones: machines that begin as copies of another, each as itself.

use super::snapshots::{Saved, saved_disks_of, sizes_in, still_given};
use super::work::Work;
use super::{App, Caller};
use crate::{Error, util};
use api::v1::error::ErrorCode;
use api::v1::event::EventKind;
use api::v1::name;
use api::v1::snapshot::{CLONES_MAX, CloneParams};
use api::v1::vm::{InstanceParams, VmConfig, VmState, check_sizes};
use image::{Instance, InstanceDisk};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use store::{Origin, Resume, VmRecord};

/// A clone to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    /// Its identity.
    id: String,
    /// Its name.
    name: String,
}

/// What clones begin with.
struct Source {
    /// What they shall be.
    config: VmConfig,
    /// The disks of the machine; nothing for one that has not been started yet.
    disks: Option<Vec<InstanceDisk>>,
    /// The snapshot that they go on from; without, they boot.
    snapshot: Option<PathBuf>,
}

impl App {
    /// What is refused before an operation makes clones; the clones to be.
    pub(crate) fn plan_clones(&self, vm: &VmRecord, params: &CloneParams) -> Result<Vec<Planned>, Error> {
        let invalid = |message: String| Error::new(ErrorCode::Invalid, message);
        if !(1..=CLONES_MAX).contains(&params.names.len()) {
            return Err(invalid(format!("1 to {CLONES_MAX} machines can be cloned at a time")));
        }
        for (index, name) in params.names.iter().enumerate() {
            name::check("virtual machine", name)?;
            if params.names[..index].contains(name)
                || self.read(|records| Ok(records.vm(&vm.project, name).is_ok()))?
            {
                return Err(Error::new(ErrorCode::AlreadyExists, format!("the name {name:?} is taken"))
                    .with_remedy("choose another name"));
            }
        }
        let config = match &params.snapshot {
            Some(snapshot) => &still_given(&self.snapshot_record(vm, snapshot)?, vm)?,
            None => &vm.config,
        };
        if config.disks.iter().any(|disk| !disk.read_only) {
            return Err(Error::new(
                ErrorCode::Unsupported,
                format!("{} has volumes or files of the host as disks, which are not cloned", vm.name),
            )
            .with_remedy("clone machines that come from images and have no other disks"));
        }
        if params.snapshot.is_none() && self.machine(&vm.id).state() == VmState::Suspended {
            return Err(Error::new(ErrorCode::WrongState, format!("{} is suspended", vm.name))
                .with_remedy(format!("let it go on with `arnia resume {}`, then clone it", vm.name)));
        }
        Ok(params.names.iter().map(|name| Planned { id: util::uuid(), name: name.clone() }).collect())
    }

    /// Makes clones of a machine; of one that runs, or of a snapshot, they run at once.
    pub(super) async fn clone_vm(
        self: &Arc<App>,
        source: &str,
        clones: Vec<Planned>,
        snapshot: Option<String>,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let machine = self.machine(source);
        let vm = self.read(|records| Ok(records.vm_by_id(source)?))?;
        let begun = {
            let _lifecycle = machine.lifecycle.lock().await;
            // Until the clones' records and disks refer to what they stand on.
            let _no_sweep = self.standing.read().await;
            let from = self.clone_source(&vm, snapshot, work).await?;
            for clone in &clones {
                self.insert_clone(&vm, clone, &from, work).await?;
            }
            from.snapshot.is_some()
        };
        if begun {
            for clone in &clones {
                self.start(&clone.id, work).await?;
            }
        }
        Ok(())
    }

    async fn clone_source(
        self: &Arc<App>,
        vm: &VmRecord,
        snapshot: Option<String>,
        work: &Arc<Work>,
    ) -> Result<Source, Error> {
        let place = self.instance_folder(&vm.id);
        let instance =
            place.join(image::INSTANCE_FILE).exists().then(|| Instance::load(&place)).transpose()?;
        let machine = self.machine(&vm.id);
        let mut config = vm.config.clone();
        let folder = match snapshot {
            Some(name) => {
                let record = self.snapshot_record(vm, &name)?;
                config = still_given(&record, vm)?;
                Some(self.snapshot_folder(&record.id))
            }
            None if machine.process().is_some() => {
                let id = util::uuid();
                self.save(&machine, vm, &id, Saved::disks(), work).await?;
                Some(self.snapshot_folder(&id))
            }
            None => None,
        };
        // It may have been changed after the machine that was saved had booted.
        if let Some(sizes) = folder.as_deref().and_then(sizes_in) {
            check_sizes(sizes.cpus, sizes.memory)?;
            (config.cpus, config.memory) = (sizes.cpus, sizes.memory);
        }
        let disks = match (&folder, &instance) {
            (Some(folder), Some(instance)) => Some(saved_disks_of(folder, instance)?),
            (None, Some(instance)) => Some(instance.disks.clone()),
            (_, None) => None,
        };
        Ok(Source { config, disks, snapshot: folder })
    }

    async fn insert_clone(
        self: &Arc<App>,
        vm: &VmRecord,
        clone: &Planned,
        from: &Source,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        if self.read(|records| Ok(records.vm_by_id(&clone.id).is_ok()))? {
            // An earlier daemon has come so far.
            return Ok(());
        }
        let mut config = VmConfig { autostart: Default::default(), ..from.config.clone() };
        // Two machines that write to one folder are for somebody to want.
        config.mounts.clear();
        for nic in &mut config.nics {
            (nic.mac, nic.address) = (None, None);
            // The host's ports are the other's.
            nic.ports.clear();
        }
        super::networks::complete_cards(&mut config)?;
        let origin = vm.origin.as_ref().map(|origin| Origin {
            image: origin.image,
            params: match from.disks {
                // What it was given is on its disks; how cloud-init is told of it stays.
                Some(_) => InstanceParams { seed: origin.params.seed, ..InstanceParams::default() },
                None => origin.params.clone(),
            },
        });
        let resume = from.snapshot.clone().map(|snapshot| Resume { snapshot, other: true });
        let mut record =
            VmRecord::new(clone.id.clone(), &vm.project, clone.name.clone(), config, util::now());
        (record.origin, record.resume) = (origin, resume);
        if let Some(origin) = &record.origin {
            self.images.pin(&Instance::pin_of(&record.id), origin.image)?;
            if let Some(disks) = &from.disks {
                self.make_clone_disks(&record, origin, disks.clone(), from.snapshot.is_none(), work).await?;
            }
        }
        let inserted = self.write(|records| {
            // Those of a snapshot may be gone.
            super::vms::check_volumes(records, &vm.project, &record.config)?;
            super::networks::assign_addresses(records, &vm.project, &record.id, &mut record.config)?;
            let before = records.usage(&vm.project)?;
            records.vm_insert(&record)?;
            super::projects::check_quota(records, &vm.project, before)
        });
        if let Err(error) = inserted {
            let _ = std::fs::remove_dir_all(self.config.paths.vm_data(&record.id));
            self.release_image(&record.id);
            return Err(error);
        }
        let (id, name) = (record.id, record.name);
        self.tell(&vm.project, EventKind::VmChanged { vm: id, name, state: VmState::Stopped, reason: None });
        Ok(())
    }

    async fn make_clone_disks(
        self: &Arc<App>,
        record: &VmRecord,
        origin: &Origin,
        disks: Vec<InstanceDisk>,
        copied: bool,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        crate::config::private_folder(&self.config.paths.vm_data(&record.id))
            .map_err(|e| Error::internal(e.to_string(), ""))?;
        let folder = self.instance_folder(&record.id);
        let params = image::InstanceParams {
            name: record.name.clone(),
            uuid: Some(record.id.clone()),
            mac: record.config.nics.first().and_then(|nic| nic.mac.clone()),
            seed: origin.params.seed,
            ..image::InstanceParams::default()
        };
        let image = origin.image;
        self.with_images(work, move |store, watch| {
            let _ = std::fs::remove_dir_all(&folder);
            let params = match copied {
                true => image::InstanceParams { copied: disks, ..params },
                false => image::InstanceParams { over: disks, ..params },
            };
            Instance::create(store, image, &folder, &params, watch)
        })
        .await
        .map(drop)
    }

    /// What a machine's clones are made by, as an operation.
    pub(crate) fn clone_request(
        self: &Arc<App>,
        caller: &Caller,
        vm: &VmRecord,
        params: CloneParams,
    ) -> Result<api::v1::operation::Operation, Error> {
        let clones = self.plan_clones(vm, &params)?;
        self.vm_operation(caller, vm, &super::Request::VmClone { clones, snapshot: params.snapshot })
    }
}
