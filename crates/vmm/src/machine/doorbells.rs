//! Doorbells: with an engine that can, a guest's notification of a queue wakes the queue's worker without the
//! vCPU leaving the guest.

use cpu::Vm;
use device::pci::PciFunction;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use virtio::VirtioPci;

/// The queues whose notifications go past the vCPU, by function and queue, with their addresses.
pub(super) struct Doorbells {
    vm: Arc<dyn Vm>,
    functions: Vec<Arc<VirtioPci>>,
    placed: Mutex<BTreeMap<(usize, u16), u64>>,
}

impl Doorbells {
    pub(super) fn new(vm: Arc<dyn Vm>, functions: &[Arc<VirtioPci>]) -> Doorbells {
        Doorbells { vm, functions: functions.to_vec(), placed: Mutex::default() }
    }

    /// Follows the base address registers. What an engine does not take stays a call to the device.
    pub(super) fn follow(&self) {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.wanted();
        placed.retain(|place, gpa| {
            let stays = wanted.get(place) == Some(gpa);
            if !stays {
                self.set(*place, *gpa, false);
            }
            stays
        });
        for (place, gpa) in wanted {
            if !placed.contains_key(&place) && self.set(place, gpa, true) {
                placed.insert(place, gpa);
            }
        }
    }

    fn wanted(&self) -> BTreeMap<(usize, u16), u64> {
        let mut wanted = BTreeMap::new();
        for (index, function) in self.functions.iter().enumerate() {
            let bar = function.bars().into_iter().find(|bar| bar.enabled && bar.base != 0);
            for (queue, bar) in (0..function.queue_count()).zip(bar.into_iter().cycle()) {
                wanted.insert((index, queue), bar.base.wrapping_add(virtio::notify_offset(queue)));
            }
        }
        wanted
    }

    fn set(&self, (index, queue): (usize, u16), gpa: u64, on: bool) -> bool {
        /// A write of any length is a notification.
        const ANY_LENGTH: u32 = 0;
        match self.functions[index].notify_fd(queue) {
            Some(event) => self.vm.set_doorbell(gpa, ANY_LENGTH, event, on),
            None => false,
        }
    }
}
