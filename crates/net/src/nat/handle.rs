//! What other threads do with a running network: change its forwarded ports and read its counters.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::NatSpec;
use super::forward::{self, Forward, ForwardSocket};
use super::host::Flag;
use super::stats::{Counters, NatStats};
use crate::{NetError, NetErrorKind};

/// Names a forwarded port of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardId(pub u64);

/// A forwarded port as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardStatus {
    /// Its name.
    pub id: ForwardId,
    /// The rule, with the port that the host chose if it was to, and with the guest's address.
    pub forward: Forward,
}

/// What the thread that moves frames is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Add { id: ForwardId, socket: ForwardSocket, guest: SocketAddrV4 },
    Remove { id: ForwardId },
}

/// Shared by a network and its handles.
#[derive(Debug)]
pub(super) struct Shared {
    spec: NatSpec,
    commands: Mutex<Vec<Command>>,
    forwards: Mutex<Vec<ForwardStatus>>,
    next_id: AtomicU64,
    /// Raised when there are commands, or the network is gone.
    pub(super) wake: Flag,
    pub(super) is_gone: AtomicBool,
    counters: Arc<Counters>,
}

impl Shared {
    pub(super) fn new(spec: NatSpec, counters: Arc<Counters>) -> Result<Self, NetError> {
        Ok(Self {
            spec,
            commands: Mutex::default(),
            forwards: Mutex::default(),
            next_id: AtomicU64::new(1),
            wake: Flag::new()?,
            is_gone: AtomicBool::new(false),
            counters,
        })
    }

    pub(super) fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut *lock(&self.commands))
    }

    /// Strikes a forwarded port off the list that could not be watched.
    pub(super) fn forget(&self, id: ForwardId) {
        lock(&self.forwards).retain(|status| status.id != id);
    }
}

/// Locks; nothing that is done under these locks can leave half a change behind when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Controls a running network from any thread; cheap to clone.
///
/// The network itself, [`Nat`](super::Nat), belongs to the thread that moves its frames.
#[derive(Clone, Debug)]
pub struct NatHandle {
    pub(super) shared: Arc<Shared>,
}

impl NatHandle {
    /// Listens on a port of the host and leads it to a guest. The port is open when this returns.
    ///
    /// # Errors
    /// Fails when the host does not give the port, when the rule does not fit the network, and when the
    /// network is gone.
    pub fn add_forward(&self, forward: &Forward) -> Result<ForwardStatus, NetError> {
        let shared = &self.shared;
        shared.spec.check_forward(forward)?;
        if shared.is_gone.load(Ordering::Acquire) {
            return Err(NetError::new(
                NetErrorKind::Config,
                format!("cannot add port forwarding {forward}: its network has stopped; start the VM first"),
            ));
        }
        let (socket, listen) = forward::listen(forward)?;
        let address = forward.guest_address.unwrap_or(shared.spec.guest);
        let guest = SocketAddrV4::new(address, forward.guest_port);
        let id = ForwardId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        let status = ForwardStatus {
            id,
            forward: Forward { listen, guest_address: Some(address), ..forward.clone() },
        };
        lock(&shared.forwards).push(status.clone());
        lock(&shared.commands).push(Command::Add { id, socket, guest });
        shared.wake.raise();
        Ok(status)
    }

    /// Closes a forwarded port. Connections made through it go on; the port is free as soon as the network's
    /// thread has taken notice.
    ///
    /// # Errors
    /// Fails when there is no such forwarded port.
    pub fn remove_forward(&self, id: ForwardId) -> Result<(), NetError> {
        let shared = &self.shared;
        let mut forwards = lock(&shared.forwards);
        let Some(index) = forwards.iter().position(|status| status.id == id) else {
            return Err(NetError::new(
                NetErrorKind::NotFound,
                format!("there is no forwarded port {}: list them to see which there are", id.0),
            ));
        };
        forwards.remove(index);
        drop(forwards);
        lock(&shared.commands).push(Command::Remove { id });
        shared.wake.raise();
        Ok(())
    }

    /// Returns the forwarded ports, oldest first.
    pub fn forwards(&self) -> Vec<ForwardStatus> {
        lock(&self.shared.forwards).clone()
    }

    /// Returns what the network has done so far.
    pub fn stats(&self) -> NatStats {
        self.shared.counters.snapshot()
    }
}
