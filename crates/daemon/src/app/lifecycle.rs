//! Starting, stopping, pausing machines, and what follows when one ends.

use super::{App, Machine};
use crate::machine::{self, Ending, Folder, Process, process};
use crate::{Error, util};
use api::v1::error::ErrorCode;
use api::v1::event::EventKind;
use api::v1::vm::{RestartPolicy, STOP_TIMEOUT_DEFAULT, StopParams, VmState, WorkerView};
use api::worker::control::{Request, Status};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Desired, VmRecord};

/// How long a worker has to come up. It opens files, no more.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often a worker that comes up is asked whether it is there.
const START_INTERVAL: Duration = Duration::from_millis(5);
/// How long a worker that was told to end has, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// A machine that ends by faults more often than this in this time stays off.
const FAULTS_MAX: usize = 5;
const FAULTS_WITHIN: Duration = Duration::from_secs(600);

impl App {
    /// Where the runtime files of a machine are.
    pub(super) fn folder(&self, id: &str) -> Folder {
        Folder(self.config.paths.vm_runtime(id))
    }

    pub(crate) fn console_log(&self, id: &str) -> PathBuf {
        self.config.paths.vm_data(id).join("console.log")
    }

    pub(crate) fn worker_log(&self, id: &str) -> PathBuf {
        self.config.paths.vm_data(id).join("worker.log")
    }

    /// The console's socket of a machine that runs.
    pub(crate) fn console(&self, vm: &VmRecord) -> Result<PathBuf, Error> {
        self.running(vm)?;
        Ok(self.folder(&vm.id).file("console"))
    }

    /// Starts a machine. One that runs already is left as it is.
    pub(super) async fn start(self: &Arc<App>, id: &str) -> Result<(), Error> {
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
        if machine.state().is_active() {
            return Ok(());
        }
        self.launch(&machine, &vm).await
    }

    /// Starts the worker; the caller holds the lifecycle.
    async fn launch(self: &Arc<App>, machine: &Arc<Machine>, vm: &VmRecord) -> Result<(), Error> {
        self.enter(machine, VmState::Starting, None);
        let result = self.try_launch(machine, vm).await;
        if let Err(error) = &result {
            let reason = error.to_string();
            self.settle(machine, true, Some(&reason));
        }
        result
    }

    async fn try_launch(self: &Arc<App>, machine: &Arc<Machine>, vm: &VmRecord) -> Result<(), Error> {
        let folder = self.folder(&vm.id);
        let data = self.config.paths.vm_data(&vm.id);
        let unusable = |e: std::io::Error| Error::internal("the machine's process cannot be started", e);
        crate::config::private_folder(&data).map_err(|e| Error::internal(e.to_string(), ""))?;
        let volumes = self.volume_paths(vm)?;
        let config = machine::worker_config(vm, &folder, self.console_log(&vm.id), |disk| {
            match (&disk.path, &disk.volume) {
                (Some(path), _) => path.into(),
                (None, volume) => {
                    volumes.get(volume.as_deref().unwrap_or_default()).cloned().unwrap_or_default()
                }
            }
        });
        // Written down first: should the daemon be killed now, the next one knows what to look for.
        self.write(|records| {
            records.vm_set_state(&vm.id, Desired::Running, false, None)?;
            Ok(records.vm_started(&vm.id, util::now(), vm.revision)?)
        })?;
        let log = self.worker_log(&vm.id);
        let process = Process::start(&self.config.worker, &folder, &config, &log).map_err(|e| {
            unusable(e).with_remedy(format!("is {:?} the program arnia-vmm?", self.config.worker))
        })?;
        let process = Arc::new(process);
        machine.live().process = Some(process.clone());
        let status = match self.wait_ready(&process, &folder).await {
            Ok(status) => status,
            Err(error) => {
                machine.live().process = None;
                return Err(error);
            }
        };
        self.take_over(machine, process, &status);
        Ok(())
    }

    /// Waits until a worker answers.
    async fn wait_ready(&self, process: &Process, folder: &Folder) -> Result<Status, Error> {
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
                let id = folder.path().file_name().unwrap_or_default().to_string_lossy();
                let words = process::last_words(&self.worker_log(&id));
                let error = Error::new(ErrorCode::Invalid, "the machine cannot start");
                Err(if words.is_empty() { error } else { error.with_cause(words) })
            }
            status = ready => Ok(status),
            () = tokio::time::sleep(START_PATIENCE) => {
                process.kill();
                process.ended().await;
                Err(Error::new(ErrorCode::Unavailable, "the machine's process does not answer")
                    .with_remedy("try again when the host is less busy"))
            }
        }
    }

    /// From now on the machine runs, and its end is waited for.
    pub(super) fn take_over(self: &Arc<App>, machine: &Arc<Machine>, process: Arc<Process>, status: &Status) {
        {
            let mut live = machine.live();
            live.view = Some(WorkerView {
                pid: process.pid(),
                version: status.program.clone(),
                engine: status.engine.clone(),
                cpu_model: status.cpu_model.clone(),
            });
            live.process = Some(process.clone());
        }
        let paused = status.state == api::worker::control::VmState::Paused;
        self.enter(machine, if paused { VmState::Paused } else { VmState::Running }, None);
        self.guest_appears(machine, process.clone());
        let (app, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move {
            process.ended().await;
            app.ended(&machine).await;
        });
    }

    /// A machine's worker has ended.
    async fn ended(self: &Arc<App>, machine: &Arc<Machine>) {
        let ending = process::ending(&self.folder(&machine.id));
        self.conclude(machine, ending).await;
    }

    /// Draws the conclusions from the end of a machine.
    pub(super) async fn conclude(self: &Arc<App>, machine: &Arc<Machine>, ending: Ending) {
        {
            let mut live = machine.live();
            live.process = None;
            live.view = None;
        }
        machine.guest.forget();
        let stopping = machine.state() == VmState::Stopping;
        let (fault, reason) = match ending {
            Ending::ByGuest(what) => (false, Some(what.to_owned())),
            Ending::Stopped => (false, None),
            Ending::HostRestarted => (false, Some("the host was started anew".to_owned())),
            Ending::Killed if stopping => (false, None),
            Ending::Killed => (true, Some("its process was killed".to_owned())),
            Ending::Failed(message) => (true, Some(message)),
            Ending::Crashed(message) => (true, Some(message)),
        };
        let again = fault && !stopping && self.may_restart(machine);
        if !again {
            self.settle(machine, fault, reason.as_deref());
            return;
        }
        log::warn!("machine {} starts again: {}", machine.id, reason.as_deref().unwrap_or_default());
        self.enter(machine, VmState::Starting, reason.as_deref());
        let app = self.clone();
        let machine = machine.clone();
        // Not awaited: this is called by the task that waits for the end, and a start makes the next one.
        tokio::spawn(async move {
            let _lifecycle = machine.lifecycle.lock().await;
            // Somebody may have removed or stopped it meanwhile.
            if machine.state() != VmState::Starting {
                return;
            }
            match app.read(|records| Ok(records.vm_by_id(&machine.id)?)) {
                Ok(vm) => drop(app.launch(&machine, &vm).await),
                Err(_) => app.enter(&machine, VmState::Stopped, None),
            }
        });
    }

    /// Counts a fault; whether the machine may start again.
    fn may_restart(&self, machine: &Machine) -> bool {
        let policy = self.read(|records| Ok(records.vm_by_id(&machine.id)?.config.restart));
        if !matches!(policy, Ok(RestartPolicy::OnFailure)) {
            return false;
        }
        let mut live = machine.live();
        live.faults.retain(|time| time.elapsed() < FAULTS_WITHIN);
        live.faults.push(Instant::now());
        live.faults.len() <= FAULTS_MAX
    }

    /// The machine is off and stays so.
    fn settle(&self, machine: &Machine, failed: bool, reason: Option<&str>) {
        let result =
            self.write(|records| Ok(records.vm_set_state(&machine.id, Desired::Stopped, failed, reason)?));
        if let Err(error) = result
            && error.code() != ErrorCode::NotFound
        {
            log::error!("the end of machine {} cannot be written down: {error}", machine.id);
        }
        self.enter(machine, if failed { VmState::Failed } else { VmState::Stopped }, reason);
    }

    /// Changes the state and tells it.
    pub(super) fn enter(&self, machine: &Machine, state: VmState, reason: Option<&str>) {
        machine.state.send_replace(state);
        if let Ok(vm) = self.read(|records| Ok(records.vm_by_id(&machine.id)?)) {
            let what =
                EventKind::VmChanged { vm: vm.id, name: vm.name, state, reason: reason.map(str::to_owned) };
            self.tell(&vm.project, what);
        }
    }

    /// Stops a machine: asks the guest, or ends it at once. One that does not run is left as it is.
    pub(super) async fn stop(self: &Arc<App>, id: &str, params: StopParams) -> Result<(), Error> {
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        self.stop_locked(&machine, params).await
    }

    pub(super) async fn stop_locked(
        self: &Arc<App>,
        machine: &Arc<Machine>,
        params: StopParams,
    ) -> Result<(), Error> {
        let before = machine.state();
        if !before.is_active() {
            return Ok(());
        }
        let Some(process) = machine.process() else {
            // It was about to start again after a fault.
            self.settle(machine, false, None);
            return Ok(());
        };
        self.enter(machine, VmState::Stopping, None);
        let result = self.end_process(machine, &process, params, before).await;
        if result.is_err() && machine.process().is_some() {
            // The guest goes on.
            self.enter(machine, VmState::Running, None);
        }
        result
    }

    async fn end_process(
        &self,
        machine: &Machine,
        process: &Process,
        params: StopParams,
        before: VmState,
    ) -> Result<(), Error> {
        let control = self.folder(&machine.id).control();
        let off = async {
            let mut state = machine.state.subscribe();
            let _ = state.wait_for(|state| !state.is_active()).await;
        };
        tokio::pin!(off);
        if !params.force {
            if before == VmState::Paused {
                // A guest that stands still cannot power off.
                control.ask(Request::Resume {}).await?;
            }
            // A guest with an agent shuts down even where nobody listens to its power button.
            if !self.guest_shutdown(&machine.id).await {
                control.ask(Request::Power {}).await?;
            }
            let timeout = params.timeout.unwrap_or(STOP_TIMEOUT_DEFAULT);
            return tokio::select! {
                () = &mut off => Ok(()),
                () = tokio::time::sleep(Duration::from_secs(timeout.into())) => Err(Error::new(
                    ErrorCode::GuestTimeout,
                    format!("the guest has not powered off within {timeout} seconds"),
                )
                .with_remedy("wait longer with --timeout, or end it at once with --force")),
            };
        }
        // It may be stuck; then it is killed.
        let _ = tokio::time::timeout(END_PATIENCE, control.ask(Request::Stop {})).await;
        tokio::select! {
            () = &mut off => return Ok(()),
            () = tokio::time::sleep(END_PATIENCE) => process.kill(),
        }
        off.await;
        Ok(())
    }

    /// Makes a machine stand still.
    pub(crate) async fn pause(&self, vm: &VmRecord) -> Result<(), Error> {
        self.halt_or_go(vm, VmState::Running, VmState::Paused, Request::Pause {}).await
    }

    /// Lets a machine go on.
    pub(crate) async fn resume(&self, vm: &VmRecord) -> Result<(), Error> {
        self.halt_or_go(vm, VmState::Paused, VmState::Running, Request::Resume {}).await
    }

    async fn halt_or_go(
        &self,
        vm: &VmRecord,
        from: VmState,
        to: VmState,
        request: Request,
    ) -> Result<(), Error> {
        let machine = self.running(vm)?;
        let Ok(_lifecycle) = machine.lifecycle.try_lock() else {
            return Err(Error::new(
                ErrorCode::WrongState,
                format!("the virtual machine {:?} is being started or stopped", vm.name),
            )
            .with_remedy("wait until that is done"));
        };
        match machine.state() {
            state if state == to => return Ok(()),
            state if state == from => {}
            state => {
                let message = format!("the virtual machine {:?} is {state}", vm.name);
                return Err(Error::new(ErrorCode::WrongState, message));
            }
        }
        self.folder(&vm.id).control().ask(request).await?;
        // It may have ended just now; that is then said already.
        if machine.state() == from {
            self.enter(&machine, to, None);
        }
        Ok(())
    }

    /// The machine, which must have a process.
    pub(super) fn running(&self, vm: &VmRecord) -> Result<Arc<Machine>, Error> {
        let machine = self.machine(&vm.id);
        if machine.process().is_some() {
            return Ok(machine);
        }
        Err(Error::new(ErrorCode::WrongState, format!("the virtual machine {:?} does not run", vm.name))
            .with_remedy(format!("start it with `arnia start {}`", vm.name)))
    }
}
