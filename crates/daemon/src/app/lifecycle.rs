//! Stopping and pausing machines, and what follows when one ends.

use super::lock;
use super::work::Work;
use super::{App, Machine};
use crate::Error;
use crate::machine::{Ending, Folder, Process, process};
use api::v1::error::ErrorCode;
use api::v1::event::EventKind;
use api::v1::vm::{RestartPolicy, STOP_TIMEOUT_DEFAULT, StopParams, VmState};
use api::worker::control::Request;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Desired, VmRecord};

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

    /// Where a machine's worker makes snapshots.
    pub(super) fn saving_folder(&self, id: &str) -> Result<PathBuf, Error> {
        let folder = self.config.paths.vm_data(id).join("saving");
        crate::config::private_folder(&folder).map_err(|e| Error::internal(e.to_string(), ""))?;
        Ok(folder)
    }

    /// The console's socket of a machine that runs.
    pub(crate) fn console(&self, vm: &VmRecord) -> Result<PathBuf, Error> {
        self.running(vm)?;
        Ok(self.folder(&vm.id).file("console"))
    }

    /// A machine's worker has ended.
    pub(super) async fn ended(self: &Arc<App>, machine: &Arc<Machine>) {
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
        lock(&machine.mounts).clear();
        if let Some(groups) = &self.cgroups {
            groups.remove(&machine.id);
        }
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
            // Before anybody hears that it is off: its next start makes new ones.
            self.end_shares(&machine.id);
            self.settle(machine, fault, reason.as_deref());
            self.unplug(&machine.id).await;
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
                Ok(vm) => drop(app.launch(&machine, &vm, &Arc::new(Work::default())).await),
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
    pub(super) fn settle(&self, machine: &Machine, failed: bool, reason: Option<&str>) {
        let result =
            self.write(|records| Ok(records.vm_set_state(&machine.id, Desired::Stopped, failed, reason)?));
        if let Err(error) = result
            && error.code() != ErrorCode::NotFound
        {
            log::error!("the end of machine {} cannot be written down: {error}", machine.id);
        }
        let is_suspended = || {
            let vm = self.read(|records| Ok(records.vm_by_id(&machine.id)?));
            vm.is_ok_and(|vm| super::snapshots::is_suspended(&vm))
        };
        let state = match failed {
            true => VmState::Failed,
            false if is_suspended() => VmState::Suspended,
            false => VmState::Stopped,
        };
        self.enter(machine, state, reason);
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
        if before == VmState::Suspended && params.force {
            // What was saved is given up.
            self.write(|records| Ok(records.vm_set_resume(&machine.id, None)?))?;
            self.settle(machine, false, None);
        }
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
            state if state == to || state == from => {}
            state => {
                let message = format!("the virtual machine {:?} is {state}", vm.name);
                return Err(Error::new(ErrorCode::WrongState, message));
            }
        }
        // Also if it is said to be so already: the answer to an earlier request may have been lost.
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
