//! What the daemon does first: find the machines that an earlier daemon has left.

use super::App;
use crate::machine::{Folder, Process, process};
use crate::util;
use api::v1::vm::VmState;
use std::sync::Arc;
use std::time::Duration;
use store::{Desired, OperationRecord, VmRecord};

/// How long a worker that lives has to answer.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(20);

/// A machine that should run.
#[derive(Debug)]
pub(super) struct Found {
    vm: VmRecord,
}

impl App {
    /// Marks the machines that should run as being looked for.
    pub(super) fn find_machines(self: &Arc<App>) -> Vec<Found> {
        let vms = self.read(|records| Ok(records.all_vms()?)).unwrap_or_else(|error| {
            log::error!("the records cannot be read: {error}");
            Vec::new()
        });
        let mut found = Vec::new();
        for vm in vms {
            if vm.desired == Desired::Running {
                self.machine(&vm.id).state.send_replace(VmState::Starting);
                found.push(Found { vm });
            } else if vm.failed {
                self.machine(&vm.id).state.send_replace(VmState::Failed);
            } else if super::snapshots::is_suspended(&vm) {
                self.machine(&vm.id).state.send_replace(VmState::Suspended);
            }
        }
        found
    }

    /// Takes over what runs, concludes what has ended, starts what shall start, carries on operations.
    pub(super) async fn recover(self: &Arc<App>, found: Vec<Found>, unfinished: Vec<OperationRecord>) {
        let looking: Vec<_> = found
            .into_iter()
            .map(|found| {
                let app = self.clone();
                tokio::spawn(async move { app.adopt(&found.vm).await })
            })
            .collect();
        for machine in looking {
            let _ = machine.await;
        }
        self.find_switches().await;
        self.find_shares().await;
        let goes_on = async {
            for operation in unfinished {
                self.run_operation(operation);
            }
            self.autostart().await;
        };
        // Templates wait for those that are being made, which take minutes.
        tokio::join!(goes_on, self.end_left_templates());
        self.sweep().await;
    }

    /// Takes over one machine.
    async fn adopt(self: &Arc<App>, vm: &VmRecord) {
        let (machine, folder) = (self.machine(&vm.id), self.folder(&vm.id));
        let _lifecycle = machine.lifecycle.lock().await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while process::lives(&folder) {
            if let Some((process, status)) = connect(&folder, &vm.id).await {
                let paused = status.state == api::worker::control::VmState::Paused;
                let process = Arc::new(process);
                match (&vm.resume, paused) {
                    (Some(_), true) => {
                        // Its start was cut off before its first step: nobody would ever let it go on.
                        process.kill();
                        process.ended().await;
                        let _ = self.launch(&machine, vm, &Arc::default()).await;
                        return;
                    }
                    (Some(_), false) => {
                        // It has gone on from there.
                        let _ = self.write(|records| Ok(records.vm_set_resume(&vm.id, None)?));
                    }
                    (None, _) => {}
                }
                // An earlier daemon may have been killed while it held the guest.
                machine.guest.set_may_be_frozen(true);
                self.take_over(&machine, process.clone(), &status, paused);
                self.note_ports(&machine, vm).await;
                self.guest_appears(&machine, process, false);
                return;
            }
            if tokio::time::Instant::now() > deadline {
                // It is not killed: whatever it is, the guest in it may be well.
                log::error!("the process of machine {} lives and does not answer", vm.name);
                self.enter(&machine, VmState::Failed, Some("its process lives and does not answer"));
                return;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        self.conclude(&machine, process::ending(&folder)).await;
    }

    /// Starts the machines that shall start with the host, once for each start of the host.
    async fn autostart(self: &Arc<App>) {
        let marker = self.config.paths.runtime.join("autostarted");
        let boot = util::boot_id();
        if std::fs::read_to_string(&marker).is_ok_and(|done| done == boot) {
            return;
        }
        let Ok(vms) = self.read(|records| Ok(records.all_vms()?)) else { return };
        let mut vms: Vec<VmRecord> = vms.into_iter().filter(|vm| vm.config.autostart.enabled).collect();
        vms.sort_by(|a, b| (a.config.autostart.order, &a.name).cmp(&(b.config.autostart.order, &b.name)));
        for vm in vms {
            if let Err(error) = self.start(&vm.id, &Arc::default()).await {
                log::error!("machine {} cannot start with the host: {error}", vm.name);
            }
        }
        if let Err(error) = std::fs::write(&marker, boot) {
            log::error!("the file {marker:?} cannot be written: {error}");
        }
    }
}

/// Takes over the worker that lives in `folder`, if it answers and is the machine's.
async fn connect(folder: &Folder, id: &str) -> Option<(Process, api::worker::control::Status)> {
    let control = folder.control();
    let pid = control.status().await.ok().filter(|status| status.uuid == id)?.pid;
    let process = Process::new(pid, None).ok()?;
    // Asked again: had it ended before the process was taken hold of, another could have its number by now.
    let status = control.status().await.ok().filter(|status| status.pid == pid)?;
    Some((process, status))
}

#[cfg(test)]
mod tests {
    use crate::app::{Caller, Request, testing};
    use api::v1::operation::{OperationState, Target};

    #[tokio::test]
    async fn only_what_an_earlier_daemon_has_left_is_carried_on() {
        let (app, _folder) = testing::app("unfinished");
        let plan = || {
            let target = Target { kind: "vm".into(), id: "gone".into(), name: "gone".into() };
            let plan = |records: &store::Records<'_>| {
                app.plan(records, &Caller::owner(), "default", target, &Request::VmStart {})
            };
            app.write(plan).expect("an operation").view.id
        };
        let left = plan();
        let unfinished = app.unfinished_operations();
        // A client has asked for this one since, and whoever serves the client is about to begin it.
        let asked = plan();
        app.recover(Vec::new(), unfinished).await;
        let patience = std::time::Duration::from_secs(60);
        let state = async |id: &str| app.wait_operation(id, patience).await.expect("an operation").state;
        assert_eq!(state(&left).await, OperationState::Failed, "its machine is gone");
        assert_eq!(state(&asked).await, OperationState::Running, "it is begun twice");
    }
}
