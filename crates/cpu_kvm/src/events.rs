//! Interrupt messages by event descriptor: the kernel turns a write to one into a message (KVM_IRQFD), without
//! this program's table of system calls, and without a lock of the machine.
//!
//! Each event has an interrupt number of its own behind the I/O APIC's, and a route from that to the message. The
//! kernel may deliver a message a little later, on a thread of its own. So that none is in flight while a machine is
//! saved, events are detached as long as guest time stands still: detaching waits for what is in flight. A message
//! that is sent meanwhile goes the other way.

use crate::raw;
use crate::vm::VmShared;
use cpu::MsiEvent;
use rustix::event::EventfdFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// All events of a machine.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Weak<Event>>>);

/// An event descriptor that sends a message.
pub(crate) struct Event {
    vm: Weak<VmShared>,
    descriptor: OwnedFd,
    gsi: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    message: Option<(u64, u32)>,
    is_attached: bool,
}

impl Events {
    /// A new event without a message; `None` when the host gives none.
    pub(crate) fn open(vm: &Arc<VmShared>) -> Option<Arc<Event>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let descriptor = rustix::event::eventfd(0, flags).ok()?;
        let gsi = vm.routes.open()?;
        let event = Arc::new(Event { vm: Arc::downgrade(vm), descriptor, gsi, state: Mutex::default() });
        let mut all = vm.events.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|event| event.strong_count() > 0);
        all.push(Arc::downgrade(&event));
        Some(event)
    }

    /// Guest time goes on, or stands still.
    pub(crate) fn follow_clock(&self, vm: &VmShared, is_running: bool) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for event in all.iter().filter_map(Weak::upgrade) {
            let mut state = event.state();
            if state.message.is_some() && state.is_attached != is_running {
                event.attach(vm, &mut state, is_running);
            }
        }
    }
}

impl Event {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(&self, vm: &VmShared, state: &mut State, on: bool) {
        match raw::irqfd(&vm.fd, self.descriptor.as_fd(), self.gsi, on) {
            Ok(()) => state.is_attached = on,
            // Messages go the other way then.
            Err(e) => log::debug!("KVM does not change the event of interrupt {}: {e}", self.gsi),
        }
    }
}

/// What devices hold.
pub(crate) struct Handle(pub(crate) Arc<Event>);

impl MsiEvent for Handle {
    fn set_message(&self, address: u64, data: u32) -> bool {
        let event = &self.0;
        let Some(vm) = event.vm.upgrade() else { return false };
        let mut state = event.state();
        if !vm.routes.set(&vm.fd, event.gsi, address, data) {
            return false;
        }
        state.message = Some((address, data));
        if !state.is_attached && vm.clock.is_running() {
            event.attach(&vm, &mut state, true);
        }
        true
    }

    fn trigger(&self) {
        let state = self.0.state();
        let Some(vm) = self.0.vm.upgrade() else { return };
        if state.is_attached && rustix::io::write(&self.0.descriptor, &1u64.to_ne_bytes()).is_ok() {
            crate::vm::count(&vm.counters.events);
        } else if let Some((address, data)) = state.message {
            vm.signal_msi(address, data);
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let Some(vm) = self.vm.upgrade() else { return };
        let mut state = self.state();
        if state.is_attached {
            self.attach(&vm, &mut state, false);
        }
        vm.routes.close(self.gsi);
    }
}
