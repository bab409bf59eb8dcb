//! How the I/O APIC hears that the guest ended a level-triggered interrupt.
//!
//! With a split interrupt chip the kernel leaves the guest for an end of interrupt only when a route of the
//! machine's table has that vector, is level-triggered and leads to that vCPU. The I/O APIC belongs to the
//! platform and sends messages; so each new level-triggered message becomes a route before it is sent. The
//! table has a place for each input of the I/O APIC. What no longer applies stays in it and costs needless
//! exits at most, until its place is taken.
//!
//! Behind these come the routes of interrupts that are raised by an event descriptor ([`crate::events`]).

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Inputs of the I/O APIC: what the kernel was told to reserve.
pub(crate) const INPUTS: usize = 24;

/// Interrupts by event descriptor that a machine has at most: Linux takes 4096 routes.
const EVENTS_MAX: u32 = 2048;

/// Level-triggered, in a message's data (SDM vol. 3A, figure 11-25).
const LEVEL: u32 = 1 << 15;
/// What of the data matters here: delivery mode and vector.
const RELEVANT: u32 = LEVEL | 0x7ff;

/// A level-triggered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    address: u64,
    data: u32,
}

/// The routes of one machine.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    routes: Vec<Route>,
    /// The place to be taken next when all are.
    oldest: usize,
    /// By interrupt number, of those by event descriptor; none as long as it has no message.
    events: BTreeMap<u32, Option<Route>>,
}

impl Table {
    /// Notes a message; returns whether it is new.
    fn note(&mut self, address: u64, data: u32) -> bool {
        let route = Route { address, data: data & RELEVANT };
        if data & LEVEL == 0 || self.routes.contains(&route) {
            return false;
        }
        if self.routes.len() < INPUTS {
            self.routes.push(route);
        } else {
            self.routes[self.oldest] = route;
            self.oldest = (self.oldest + 1) % INPUTS;
        }
        true
    }

    fn for_kernel(&self) -> Option<KvmIrqRouting> {
        let levels = (0..).zip(self.routes.iter());
        let events = self.events.iter().filter_map(|(gsi, route)| Some((*gsi, route.as_ref()?)));
        let entries: Vec<_> = levels.chain(events).map(|(gsi, route)| entry(gsi, route)).collect();
        KvmIrqRouting::from_entries(&entries).ok()
    }
}

fn entry(gsi: u32, route: &Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = route.address as u32;
    entry.u.msi.address_hi = (route.address >> 32) as u32;
    entry.u.msi.data = route.data;
    entry
}

impl Routes {
    /// Makes sure that the end of this message's interrupt will be told, if it is level-triggered. Call it
    /// before the message is sent.
    pub(crate) fn prepare(&self, vm: &VmFd, address: u64, data: u32) {
        if data & LEVEL == 0 {
            return;
        }
        let mut table = self.table();
        if table.note(address, data)
            && let Some(routes) = table.for_kernel()
            && let Err(e) = vm.set_gsi_routing(&routes)
        {
            log::warn!("KVM refuses a route for ends of interrupt: {e}");
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for an interrupt by event descriptor, as long as there are any.
    pub(crate) fn open(&self) -> Option<u32> {
        let mut table = self.table();
        let first = INPUTS as u32;
        let gsi = (first..first + EVENTS_MAX).find(|gsi| !table.events.contains_key(gsi))?;
        table.events.insert(gsi, None);
        Some(gsi)
    }

    /// Gives it back. Its route goes with the next change.
    pub(crate) fn close(&self, gsi: u32) {
        self.table().events.remove(&gsi);
    }

    /// Routes an interrupt by event descriptor to a message. False when that cannot be: ends of level-triggered
    /// ones are told for inputs of the I/O APIC only.
    pub(crate) fn set(&self, vm: &VmFd, gsi: u32, address: u64, data: u32) -> bool {
        if data & LEVEL != 0 {
            return false;
        }
        let mut table = self.table();
        let Some(place) = table.events.get_mut(&gsi) else { return false };
        let before = place.replace(Route { address, data });
        let done = table.for_kernel().is_some_and(|routes| vm.set_gsi_routing(&routes).is_ok());
        if !done {
            table.events.insert(gsi, before);
        }
        done
    }

    /// As [`Routes::prepare`], for a vector that is pending or in service on a vCPU already.
    pub(crate) fn prepare_vector(&self, vm: &VmFd, apic_id: u32, vector: u8) {
        let address = x86::apic::DEFAULT_BASE | u64::from(apic_id) << 12;
        self.prepare(vm, address, LEVEL | u32::from(vector));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_triggered_messages_are_noted_once_and_old_ones_go() {
        let mut table = Table::default();
        assert!(!table.note(0xfee0_0000, 0x31), "edge-triggered");
        assert!(table.note(0xfee0_0000, LEVEL | 0x31));
        assert!(!table.note(0xfee0_0000, LEVEL | 0x4031), "the level bit of a deassertion means nothing");
        assert!(table.note(0xfee0_1000, LEVEL | 0x31), "another destination");
        for vector in 0x40..0x40 + INPUTS as u32 {
            assert!(table.note(0xfee0_0000, LEVEL | vector));
        }
        assert_eq!(table.routes.len(), INPUTS);
        assert!(table.note(0xfee0_0000, LEVEL | 0x31), "the oldest had to go");
        assert!(table.for_kernel().is_some());
    }

    #[test]
    fn events_have_numbers_behind_the_inputs_and_routes_once_they_have_a_message() {
        let routes = Routes::default();
        let numbers = [routes.open(), routes.open(), routes.open()];
        assert_eq!(numbers, [24, 25, 26].map(Some));
        routes.close(25);
        assert_eq!(routes.open(), Some(25));
        routes.table().note(0xfee0_0000, LEVEL | 0x31);
        *routes.table().events.get_mut(&26).unwrap() = Some(Route { address: 0xfee0_1000, data: 0x55 });
        let kernel = routes.table().for_kernel().unwrap();
        let numbers: Vec<_> = kernel.as_slice().iter().map(|entry| entry.gsi).collect();
        assert_eq!(numbers, [0, 26]);
    }
}
