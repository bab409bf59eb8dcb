//! Ports of the host that lead into guests, changed while they run.

use super::App;
use crate::Error;
use api::v1::error::ErrorCode;
use api::v1::network::{Port, USER_NETWORK};
use api::v1::vm::VmConfig;
use api::worker::control::Request;
use net::Forward;
use std::sync::Arc;
use std::time::Duration;
use store::VmRecord;
use tokio::sync::OwnedMutexGuard;

/// How long a change waits for another one, or for a start.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than anybody has, fewer than exhaust the worker's descriptors.
const PORTS_MAX: usize = 256;

pub(super) fn parse(rule: &str) -> Result<Forward, Error> {
    rule.parse().map_err(|e: net::NetError| Error::new(ErrorCode::Invalid, e.to_string()))
}

/// Whether two rules listen at the same place.
pub(super) fn same_place(a: &Forward, b: &Forward) -> bool {
    (a.listen, a.protocol) == (b.listen, b.protocol)
}

/// The ports of a configuration.
pub(crate) fn ports(config: &VmConfig) -> Vec<Port> {
    let of_nic = |(nic, ports): (usize, &Vec<String>)| {
        ports.iter().map(move |rule| Port { rule: rule.clone(), nic }).collect::<Vec<_>>()
    };
    config.nics.iter().map(|nic| &nic.ports).enumerate().flat_map(of_nic).collect()
}

impl App {
    /// Keeps others from starting, stopping and changing a machine.
    pub(super) async fn lifecycle_locked(
        self: &Arc<App>,
        vm: &VmRecord,
    ) -> Result<OwnedMutexGuard<()>, Error> {
        let lifecycle = self.machine(&vm.id).lifecycle.clone();
        tokio::time::timeout(PATIENCE, lifecycle.lock_owned()).await.map_err(|_| {
            let message = format!("the virtual machine {:?} is being started or stopped", vm.name);
            Error::new(ErrorCode::WrongState, message).with_remedy("wait until that is done")
        })
    }

    /// Opens a port: of the machine's configuration, and at once if it runs.
    pub(crate) async fn port_add(self: &Arc<App>, vm: &VmRecord, port: Port) -> Result<Port, Error> {
        let wanted = parse(&port.rule)?;
        let _lifecycle = self.lifecycle_locked(vm).await?;
        let mut vm = self.read(|records| Ok(records.vm_by_id(&vm.id)?))?;
        let all = ports(&vm.config);
        let Some(nic) = vm.config.nics.get_mut(port.nic) else {
            let message = format!("the virtual machine {:?} has no network card {}", vm.name, port.nic);
            return Err(Error::new(ErrorCode::Invalid, message));
        };
        if nic.network != USER_NETWORK {
            let message = format!("network card {} is not in a network of mode `user`", port.nic);
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        if all.len() >= PORTS_MAX {
            return Err(Error::new(ErrorCode::Invalid, format!("a machine has at most {PORTS_MAX} ports")));
        }
        let listens = |port: &Port| {
            wanted.listen.port() != 0 && parse(&port.rule).is_ok_and(|it| same_place(&it, &wanted))
        };
        if all.iter().any(listens) {
            let message =
                format!("the virtual machine {:?} has a port at {} already", vm.name, wanted.listen);
            return Err(Error::new(ErrorCode::AlreadyExists, message).with_remedy("remove that one first"));
        }
        let machine = self.machine(&vm.id);
        let control = machine.process().map(|_| self.folder(&vm.id).control());
        // First the port itself: whether it is to be had, only the host knows.
        let rule = match &control {
            Some(control) => {
                let opened = control.port_add(port.nic, &port.rule).await?;
                // Only what the host has chosen is written down otherwise than it was asked for.
                if wanted.listen.port() == 0 { opened } else { port.rule.clone() }
            }
            None => port.rule.clone(),
        };
        nic.ports.push(rule.clone());
        let written = self.write_config(&vm);
        if written.is_err()
            && let Some(control) = &control
        {
            let undo = Request::PortRemove { card: port.nic, rule: rule.clone() };
            let _ = control.ask(undo).await;
        }
        written?;
        Ok(Port { rule, nic: port.nic })
    }

    /// Closes the port that listens at `place`: `[ADDRESS:]PORT[/tcp|/udp]`, or the whole rule as it is listed. With port 0,
    /// which the host was to choose, only the whole rule says which one is meant.
    pub(crate) async fn port_remove(self: &Arc<App>, vm: &VmRecord, place: &str) -> Result<(), Error> {
        // A rule without its second half.
        let (listen, protocol) = place.rsplit_once('/').unwrap_or((place, "tcp"));
        let whole = parse(place).ok();
        let wanted = parse(&format!("{listen}:1/{protocol}")).ok().or(whole.clone()).ok_or_else(|| {
            Error::new(ErrorCode::Invalid, format!("{place:?} is no port: write [ADDRESS:]PORT[/tcp|/udp]"))
        })?;
        let _lifecycle = self.lifecycle_locked(vm).await?;
        let mut vm = self.read(|records| Ok(records.vm_by_id(&vm.id)?))?;
        let listens = |port: &Port| {
            parse(&port.rule).is_ok_and(|it| match it.listen.port() {
                0 => Some(it) == whole,
                _ => same_place(&it, &wanted),
            })
        };
        let (written, open) = (ports(&vm.config), self.ports_now(&vm).await);
        let found = written.iter().zip(&open).position(|(rule, open)| listens(rule) || listens(open));
        let Some(found) = found else {
            let message = format!("the virtual machine {:?} has no port at {place}", vm.name);
            return Err(Error::new(ErrorCode::NotFound, message)
                .with_remedy(format!("see `arnia port ls {}`", vm.name)));
        };
        let (card, closed) = (written[found].nic, open[found].clone());
        let index = written[..found].iter().filter(|port| port.nic == card).count();
        vm.config.nics[card].ports.remove(index);
        self.write_config(&vm)?;
        let machine = self.machine(&vm.id);
        if machine.process().is_some() {
            self.forget_port(&machine, &closed);
            let request = Request::PortRemove { card, rule: closed.rule };
            match self.folder(&vm.id).control().ask(request).await {
                // The worker may have been started without it.
                Err(error) if error.code() != ErrorCode::Invalid => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes down what has been changed in the running machine, too: one that ran with its newest configuration still
    /// does.
    pub(super) fn write_config(&self, vm: &VmRecord) -> Result<(), Error> {
        self.write(|records| {
            let now = records.vm_update(&vm.id, vm.revision, &vm.name, &vm.config)?;
            if vm.running_revision == Some(vm.revision) {
                records.vm_runs_with(&vm.id, now.revision)?;
            }
            Ok(())
        })?;
        self.tell_changed(vm);
        Ok(())
    }
}
