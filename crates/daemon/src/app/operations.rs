//! Operations: written down before they are answered, carried on after a crash.

use super::clones::Planned;
use super::work::Work;
use super::{App, Caller, lock};
use crate::{Error, util};
use api::v1::Time;
use api::v1::error::ErrorCode;
use api::v1::event::EventKind;
use api::v1::image::{ImageBuild, ImagePublish, ImagePull};
use api::v1::operation::{Operation, OperationState, Target};
use api::v1::snapshot::SnapshotParams;
use api::v1::vm::StopParams;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{OperationRecord, Records, VmRecord};
use tokio::sync::watch;

/// An operation under way.
#[derive(Debug)]
pub(super) struct Running {
    project: String,
    cancellable: Cancellable,
    /// Dropped when it has ended.
    cancel: watch::Sender<bool>,
    work: Arc<Work>,
}

/// What becomes of an operation that is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancellable {
    /// It goes on: a start is never left half done.
    No,
    /// It is given up where it stands, because it only waits.
    AtOnce,
    /// It is told, and cleans up.
    ByItself,
}

/// What an operation does. Each can be begun again from the start, however far it had come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Start a machine.
    VmStart {},
    /// Stop it.
    VmStop {
        /// How.
        params: StopParams,
    },
    /// Stop and start it.
    VmRestart {
        /// How to stop it.
        params: StopParams,
        /// When the run began that is to be ended.
        started: Option<Time>,
    },
    /// Save a machine's memory and end its process.
    VmSuspend {},
    /// Make machines that are copies of a machine.
    VmClone {
        /// Those to be.
        clones: Vec<Planned>,
        /// The snapshot that they go on from.
        snapshot: Option<String>,
    },
    /// Make a snapshot of a machine.
    SnapshotCreate {
        /// Its identity.
        id: String,
        /// What it shall be.
        params: SnapshotParams,
    },
    /// Let a machine go on from a snapshot.
    SnapshotRestore {
        /// Its name.
        snapshot: String,
    },
    /// Build an image.
    ImageBuild {
        /// How.
        params: ImageBuild,
    },
    /// Make an image of a machine.
    ImagePublish {
        /// The machine's identity.
        vm: String,
        /// How.
        params: ImagePublish,
    },
    /// Fetch an image.
    ImagePull {
        /// From where; without the login.
        params: ImagePull,
        /// Whether there is one. Only the daemon that was asked knows it.
        #[serde(default)]
        with_login: bool,
    },
}

impl Request {
    fn kind(&self) -> &'static str {
        match self {
            Request::VmStart {} => "vm_start",
            Request::VmStop { .. } => "vm_stop",
            Request::VmRestart { .. } => "vm_restart",
            Request::VmSuspend {} => "vm_suspend",
            Request::VmClone { .. } => "vm_clone",
            Request::SnapshotCreate { .. } => "snapshot_create",
            Request::SnapshotRestore { .. } => "snapshot_restore",
            Request::ImageBuild { .. } => "image_build",
            Request::ImagePull { .. } => "image_pull",
            Request::ImagePublish { .. } => "image_publish",
        }
    }
}

impl Cancellable {
    fn of(kind: &str) -> Cancellable {
        match kind {
            "vm_stop" => Cancellable::AtOnce,
            "image_build" | "image_pull" | "image_publish" | "snapshot_create" => Cancellable::ByItself,
            _ => Cancellable::No,
        }
    }
}

impl App {
    /// Writes an operation on a machine down, within the caller's transaction. [`App::run_operation`] must follow.
    pub(crate) fn plan_operation(
        &self,
        records: &Records<'_>,
        caller: &Caller,
        vm: &VmRecord,
        request: &Request,
    ) -> Result<OperationRecord, Error> {
        let target = Target { kind: "vm".into(), id: vm.id.clone(), name: vm.name.clone() };
        self.plan(records, caller, &vm.project, target, request)
    }

    /// Writes an operation down, within the caller's transaction. [`App::run_operation`] must follow.
    pub(super) fn plan(
        &self,
        records: &Records<'_>,
        caller: &Caller,
        project: &str,
        target: Target,
        request: &Request,
    ) -> Result<OperationRecord, Error> {
        let view = Operation {
            id: util::uuid(),
            kind: request.kind().into(),
            project: project.into(),
            target,
            state: OperationState::Running,
            progress: None,
            error: None,
            user: caller.name.clone(),
            created: util::now(),
            finished: None,
        };
        let request = serde_json::to_value(request).map_err(|e| Error::internal("no operation", e))?;
        let record = OperationRecord { view, request };
        records.operation_insert(&record)?;
        Ok(record)
    }

    /// Begins an operation that is written down.
    pub(crate) fn run_operation(self: &Arc<App>, record: OperationRecord) -> Operation {
        let (cancel, mut cancelled) = watch::channel(false);
        let view = record.view.clone();
        let work = Arc::new(Work::of(self, &view));
        let cancellable = Cancellable::of(&view.kind);
        let running = Running { project: view.project.clone(), cancellable, cancel, work: work.clone() };
        lock(&self.operations).insert(view.id.clone(), running);
        self.tell(&view.project, EventKind::OperationChanged { operation: Box::new(view.clone()) });
        let app = self.clone();
        tokio::spawn(async move {
            let carried_out = app.carry_out(&record, &work);
            let cancel = async { drop(cancelled.wait_for(|cancelled| *cancelled).await) };
            let result = tokio::select! {
                result = carried_out => Some(result),
                () = cancel => None,
            };
            let result = match result {
                Some(result) => result,
                None => {
                    app.refresh(&record.view.target.id).await;
                    Err(Error::new(ErrorCode::Cancelled, "the operation was cancelled"))
                }
            };
            app.finish_operation(record, result);
        });
        view
    }

    async fn carry_out(self: &Arc<App>, record: &OperationRecord, work: &Arc<Work>) -> Result<(), Error> {
        let request = serde_json::from_value(record.request.clone())
            .map_err(|e| Error::internal("the operation is not known to this daemon", e))?;
        let id = &record.view.target.id;
        match request {
            Request::VmStart {} => self.start(id, work).await,
            Request::VmStop { params } => self.stop(id, params).await,
            Request::VmRestart { params, started } => {
                let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
                // After a crash of the daemon: has it been stopped, or even started, already?
                if vm.started == started {
                    self.stop(id, params).await?;
                }
                self.start(id, work).await
            }
            Request::VmSuspend {} => self.suspend(id, work).await,
            Request::VmClone { clones, snapshot } => self.clone_vm(id, clones, snapshot, work).await,
            Request::SnapshotCreate { id: snapshot, params } => {
                self.snapshot_create(id, &snapshot, params, work).await
            }
            Request::SnapshotRestore { snapshot } => self.snapshot_restore(id, &snapshot, work).await,
            Request::ImageBuild { params } => self.image_build(params, work).await,
            Request::ImagePull { params, with_login } => {
                let login = lock(&self.logins).remove(&record.view.id);
                if with_login && login.is_none() {
                    let message =
                        "the daemon has ended in between, and does not know the registry's login any more";
                    return Err(
                        Error::new(ErrorCode::Cancelled, message).with_remedy("ask for the image again")
                    );
                }
                self.image_pull(params, login, work).await
            }
            Request::ImagePublish { vm, params } => self.image_publish(&vm, params, work).await,
        }
    }

    /// An operation as it is now, with what it does just now.
    pub(crate) fn with_progress(&self, mut operation: Operation) -> Operation {
        operation.progress = lock(&self.operations).get(&operation.id).and_then(|it| it.work.progress());
        operation
    }

    /// Finds out what a machine does that somebody no longer waits for.
    async fn refresh(self: &Arc<App>, id: &str) {
        use api::v1::vm::VmState;
        let machine = self.machine(id);
        let _lifecycle = machine.lifecycle.lock().await;
        if machine.state() == VmState::Stopping && machine.process().is_some() {
            self.enter(&machine, VmState::Running, None);
        }
    }

    fn finish_operation(&self, mut record: OperationRecord, result: Result<(), Error>) {
        let view = &mut record.view;
        view.finished = Some(util::now());
        view.state = match result {
            Ok(()) => OperationState::Succeeded,
            Err(error) => {
                let cancelled = error.code() == ErrorCode::Cancelled;
                view.error = Some(error.0);
                if cancelled { OperationState::Cancelled } else { OperationState::Failed }
            }
        };
        // An operation whose end is lost is carried out again, which changes nothing.
        if let Err(error) = self.write_soon(|records| Ok(records.operation_update(&record)?)) {
            log::error!("the end of operation {} cannot be written down: {error}", record.view.id);
        }
        let (id, project) = (record.view.id.clone(), record.view.project.clone());
        self.tell(&project, EventKind::OperationChanged { operation: Box::new(record.view) });
        // After the last that is told of it: what is not here any more says nothing.
        lock(&self.operations).remove(&id);
    }

    /// Whether something is under way in a project. To be called within the transaction that depends on it.
    pub(super) fn is_busy(&self, records: &Records<'_>, project: &str) -> Result<bool, Error> {
        // Those that are written down have perhaps not begun, and those that have ended there perhaps not told it.
        let planned = records.operations_unfinished()?;
        Ok(planned.iter().any(|operation| operation.view.project == project)
            || lock(&self.operations).values().any(|running| running.project == project))
    }

    /// What an earlier daemon has not finished. To be called before anybody can ask for more: operations that were asked
    /// for since are under way, or about to be.
    pub(super) fn unfinished_operations(&self) -> Vec<OperationRecord> {
        self.read(|records| Ok(records.operations_unfinished()?)).unwrap_or_else(|error| {
            log::error!("the operations cannot be read: {error}");
            Vec::new()
        })
    }

    /// Cancels an operation.
    pub(crate) fn cancel_operation(&self, id: &str) -> Result<(), Error> {
        let operations = lock(&self.operations);
        match operations.get(id) {
            Some(running) => {
                match running.cancellable {
                    Cancellable::No => {
                        let message = "an operation of this kind cannot be cancelled";
                        return Err(Error::new(ErrorCode::WrongState, message));
                    }
                    Cancellable::AtOnce => drop(running.cancel.send_replace(true)),
                    Cancellable::ByItself => running.work.cancel(),
                }
                Ok(())
            }
            None => Err(Error::new(ErrorCode::WrongState, "the operation has ended already")),
        }
    }

    /// Waits until an operation has ended, but not longer than this, and returns it.
    pub(crate) async fn wait_operation(
        &self,
        id: &str,
        patience: std::time::Duration,
    ) -> Result<Operation, Error> {
        let wait = async {
            let subscription = lock(&self.operations).get(id).map(|running| running.cancel.subscribe());
            if let Some(mut subscription) = subscription {
                // The sender is dropped when the operation has ended; a cancellation is only its beginning.
                while subscription.changed().await.is_ok() {}
            }
        };
        let _ = tokio::time::timeout(patience, wait).await;
        Ok(self.with_progress(self.read(|records| Ok(records.operation(id)?.view))?))
    }
}
