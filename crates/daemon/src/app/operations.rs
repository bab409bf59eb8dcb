//! Operations: written down before they are answered, carried on after a crash.

use super::{App, Caller, lock};
use crate::{Error, util};
use api::v1::Time;
use api::v1::error::ErrorCode;
use api::v1::event::EventKind;
use api::v1::operation::{Operation, OperationState, Target};
use api::v1::vm::StopParams;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use store::{OperationRecord, Records, VmRecord};
use tokio::sync::watch;

/// An operation under way.
#[derive(Debug)]
pub(super) struct Running {
    /// Only waiting can be cancelled: a start is never left half done.
    cancellable: bool,
    cancel: watch::Sender<bool>,
}

/// What an operation does. Each can be begun again from the start, however far it had come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "operations on other things will join them")]
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
}

impl Request {
    fn kind(&self) -> &'static str {
        match self {
            Request::VmStart {} => "vm_start",
            Request::VmStop { .. } => "vm_stop",
            Request::VmRestart { .. } => "vm_restart",
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
        let view = Operation {
            id: util::uuid(),
            kind: request.kind().into(),
            project: vm.project.clone(),
            target: Target { kind: "vm".into(), id: vm.id.clone(), name: vm.name.clone() },
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
        let cancellable = view.kind == "vm_stop";
        lock(&self.operations).insert(view.id.clone(), Running { cancellable, cancel });
        self.tell(&view.project, EventKind::OperationChanged { operation: Box::new(view.clone()) });
        let app = self.clone();
        tokio::spawn(async move {
            let work = app.carry_out(&record);
            let cancel = async { drop(cancelled.wait_for(|cancelled| *cancelled).await) };
            let result = tokio::select! {
                result = work => Some(result),
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

    async fn carry_out(self: &Arc<App>, record: &OperationRecord) -> Result<(), Error> {
        let request = serde_json::from_value(record.request.clone())
            .map_err(|e| Error::internal("the operation is not known to this daemon", e))?;
        let id = &record.view.target.id;
        match request {
            Request::VmStart {} => self.start(id).await,
            Request::VmStop { params } => self.stop(id, params).await,
            Request::VmRestart { params, started } => {
                let vm = self.read(|records| Ok(records.vm_by_id(id)?))?;
                // After a crash of the daemon: has it been stopped, or even started, already?
                if vm.started == started {
                    self.stop(id, params).await?;
                }
                self.start(id).await
            }
        }
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
        if let Err(error) = self.write(|records| Ok(records.operation_update(&record)?)) {
            log::error!("the end of operation {} cannot be written down: {error}", record.view.id);
        }
        lock(&self.operations).remove(&record.view.id);
        let project = record.view.project.clone();
        self.tell(&project, EventKind::OperationChanged { operation: Box::new(record.view) });
    }

    /// Carries on what an earlier daemon has not finished.
    pub(super) fn resume_operations(self: &Arc<App>) {
        match self.read(|records| Ok(records.operations_unfinished()?)) {
            Ok(unfinished) => {
                for record in unfinished {
                    // Those that were asked for since this daemon started are under way.
                    if !lock(&self.operations).contains_key(&record.view.id) {
                        self.run_operation(record);
                    }
                }
            }
            Err(error) => log::error!("the operations cannot be read: {error}"),
        }
    }

    /// Cancels an operation.
    pub(crate) fn cancel_operation(&self, id: &str) -> Result<(), Error> {
        let operations = lock(&self.operations);
        match operations.get(id) {
            Some(running) if !running.cancellable => {
                Err(Error::new(ErrorCode::WrongState, "an operation of this kind cannot be cancelled"))
            }
            Some(running) => {
                running.cancel.send_replace(true);
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
        self.read(|records| Ok(records.operation(id)?.view))
    }
}
