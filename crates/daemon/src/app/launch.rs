//! Starting machines: booting them, or letting them go on from a snapshot.

use super::instances::Made;
use super::work::Work;
use super::{App, Machine, switches};
use crate::machine::{self, Folder, Process, process};
use crate::{Error, util};
use api::ByteSize;
use api::v1::error::ErrorCode;
use api::v1::limits::Limits;
use api::v1::vm::{VmState, WorkerView};
use api::worker::config::ShareConfig;
use api::worker::control::{Request, Status};
use image::Instance;
use std::sync::Arc;
use std::time::Duration;
use store::{Desired, Resume, Sizes, VmRecord};

/// How long a worker has to come up. It opens files, no more.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often a worker that comes up is asked whether it is there.
const START_INTERVAL: Duration = Duration::from_millis(2);

impl App {
    /// Starts a machine. One that runs already is left as it is.
    pub(super) async fn start(self: &Arc<App>, id: &str, work: &Arc<Work>) -> Result<(), Error> {
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
        if machine.state().is_active() {
            return Ok(());
        }
        self.launch(&machine, &vm, work).await
    }

    /// Starts the worker; the caller holds the lifecycle.
    pub(super) async fn launch(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        vm: &VmRecord,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        self.enter(machine, VmState::Starting, None);
        let mut result = self.try_launch(machine, vm, work).await;
        if let (Err(error), Ok(now)) = (&result, self.read(|records| Ok(records.vm_by_id(&vm.id)?)))
            && now.resume.as_ref().is_some_and(|resume| resume.other)
        {
            // What it was to go on from is only a way to save time: its disks boot as well.
            log::warn!("machine {} boots, because it cannot go on from its snapshot: {error}", vm.name);
            result = match self.write(|records| Ok(records.vm_set_resume(&vm.id, None)?)) {
                Ok(()) => self.try_launch(machine, &VmRecord { resume: None, ..now }, work).await,
                Err(error) => Err(error),
            };
        }
        if let Err(error) = &result {
            self.end_shares(&vm.id);
            let reason = error.to_string();
            self.settle(machine, true, Some(&reason));
        }
        result
    }

    async fn try_launch(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        vm: &VmRecord,
        work: &Arc<Work>,
    ) -> Result<(), Error> {
        let folder = self.folder(&vm.id);
        let data = self.config.paths.vm_data(&vm.id);
        let unusable = |e: std::io::Error| Error::internal("the machine's process cannot be started", e);
        crate::config::private_folder(&data).map_err(|e| Error::internal(e.to_string(), ""))?;
        let Made { instance, resume, unfinished } = self.instance(vm, work).await?;
        let cards = self.plug_in(vm).await?;
        let shares = self.serve_shares(vm).await?;
        let config = self.start_config(vm, instance.as_ref(), resume.as_ref(), &cards, shares)?;
        let mut completing = unfinished.then(|| self.complete(vm, instance.clone()));
        if resume.is_none()
            && let Some(completing) = completing.take()
        {
            // It writes to its disks as soon as it is started.
            completing.await?;
        }
        // Written down first: should the daemon be killed now, the next one knows what to look for.
        self.write(|records| {
            let ran = records.vm_by_id(&vm.id)?;
            let (mut revision, mut sizes) = (vm.revision, Sizes::of(&vm.config));
            if resume.as_ref().is_some_and(|resume| !resume.other) {
                // It is what it was, whatever has been changed since it booted.
                revision = ran.running_revision.unwrap_or(revision);
                sizes = ran.running_sizes.unwrap_or(sizes);
            }
            records.vm_set_state(&vm.id, Desired::Running, false, None)?;
            records.vm_set_resume(&vm.id, resume.as_ref())?;
            Ok(records.vm_started(&vm.id, util::now(), revision, sizes)?)
        })?;
        let log = self.worker_log(&vm.id);
        let process = Process::start(&self.config.worker, &folder, &config, &log).map_err(|e| {
            unusable(e).with_remedy(format!("is {:?} the program arnia-vmm?", self.config.worker))
        })?;
        let process = Arc::new(process);
        machine.live().process = Some(process.clone());
        let ready = async {
            // The worker comes up while the host's disk takes the machine's.
            let completed = async {
                match completing {
                    Some(completing) => completing.await,
                    None => Ok(()),
                }
            };
            let (status, completed) = tokio::join!(self.wait_ready(&process, &folder, &log), completed);
            let status = status?;
            completed?;
            self.apply_limits(vm, process.pid(), &Limits::default()).await?;
            if resume.is_some() {
                // It stands still. From its first step on it must not go on from there again.
                self.write(|records| Ok(records.vm_set_resume(&vm.id, None)?))?;
                folder.control().ask(Request::Resume {}).await?;
            }
            Ok(status)
        };
        let status: Status = match ready.await {
            Ok(status) => status,
            Err(error) => {
                process.kill();
                process.ended().await;
                machine.live().process = None;
                return Err(error);
            }
        };
        let goes_on = resume.is_some();
        machine.guest.set_may_be_frozen(goes_on);
        self.take_over(machine, process.clone(), &status, false);
        self.note_ports(machine, vm).await;
        match (resume, instance) {
            (Some(Resume { other: true, snapshot }), Some(instance)) => {
                // It then looks for what the guest tells of itself, too: not before, because a guest that has just
                // gone on is slow, and everybody waits for this.
                self.become_itself(machine, process, vm, &instance, &snapshot).await;
                return Ok(());
            }
            (Some(Resume { other: false, .. }), Some(instance)) => self.tell_time(vm, &instance),
            _ => {}
        }
        self.guest_appears(machine, process, goes_on);
        Ok(())
    }

    /// Makes what a new instance has of its own last.
    fn complete(
        &self,
        vm: &VmRecord,
        instance: Option<Instance>,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let place = self.instance_folder(&vm.id);
        let done = tokio::task::spawn_blocking(move || match instance {
            Some(instance) => instance.complete(&place),
            None => Ok(()),
        });
        async move { Ok(done.await.map_err(|e| Error::internal("the machine's disks are lost", e))??) }
    }

    /// What the machine's worker is started with.
    fn start_config(
        &self,
        vm: &VmRecord,
        instance: Option<&Instance>,
        resume: Option<&Resume>,
        cards: &switches::Cards,
        shares: Vec<ShareConfig>,
    ) -> Result<machine::Start, Error> {
        let (folder, volumes) = (self.folder(&vm.id), self.volume_paths(vm)?);
        let disk_path = |disk: &api::v1::vm::DiskConfig| match (&disk.path, &disk.volume) {
            (Some(path), _) => path.into(),
            (None, volume) => volumes.get(volume.as_deref().unwrap_or_default()).cloned().unwrap_or_default(),
        };
        let card = |nic: &api::v1::network::NicConfig| cards.get(nic.name.as_deref()?).cloned();
        let console_log = self.console_log(&vm.id);
        let config = machine::worker_config(vm, instance, &folder, console_log, disk_path, card);
        let config = api::worker::config::VmConfig {
            snapshots: Some(self.saving_folder(&vm.id)?),
            shares: Some(shares),
            ..config
        };
        Ok(match resume {
            None => machine::Start::Boot(Box::new(config)),
            Some(resume) => machine::Start::Restore(Box::new(machine::restore_config(config, resume))),
        })
    }

    /// Waits until a worker answers.
    pub(super) async fn wait_ready(
        &self,
        process: &Process,
        folder: &Folder,
        log: &std::path::Path,
    ) -> Result<Status, Error> {
        let control = folder.control();
        let ready = async {
            loop {
                match control.status().await {
                    Ok(status) => return status,
                    Err(_) => tokio::time::sleep(START_INTERVAL).await,
                }
            }
        };
        tokio::select! {
            biased;
            () = process.ended() => {
                let words = process::last_words(log);
                let error = Error::new(ErrorCode::Invalid, "the machine cannot start");
                Err(if words.is_empty() { error } else { error.with_cause(words) })
            }
            status = ready => Ok(status),
            () = tokio::time::sleep(START_PATIENCE) => {
                Err(Error::new(ErrorCode::Unavailable, "the machine's process does not answer")
                    .with_remedy("try again when the host is less busy"))
            }
        }
    }

    /// From now on the machine runs, and its end is waited for.
    pub(super) fn take_over(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        process: Arc<Process>,
        status: &Status,
        paused: bool,
    ) {
        {
            let mut live = machine.live();
            live.view = Some(WorkerView {
                pid: process.pid(),
                version: status.program.clone(),
                engine: status.engine.clone(),
                cpu_model: status.cpu_model.clone(),
                chosen_ports: Vec::new(),
            });
            live.process = Some(process.clone());
        }
        self.note_sizes(&machine.id, status);
        self.enter(machine, if paused { VmState::Paused } else { VmState::Running }, None);
        let (app, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move {
            process.ended().await;
            app.ended(&machine).await;
        });
    }

    /// Writes down how large a machine is, as its process says: one that goes on from a snapshot is as large as that.
    fn note_sizes(&self, id: &str, status: &Status) {
        let sizes = Sizes { cpus: status.cpus, memory: ByteSize(status.memory_bytes) };
        let known = self.read(|records| Ok(records.vm_by_id(id)?.running_sizes));
        let noted = match known {
            Ok(known) if known == Some(sizes) => Ok(()),
            Ok(_) => self.write_soon(|records| Ok(records.vm_has_sizes(id, sizes)?)),
            Err(error) => Err(error),
        };
        if let Err(error) = noted {
            log::error!("the size of machine {id} cannot be written down: {error}");
        }
    }
}
