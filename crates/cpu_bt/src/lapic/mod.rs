//! The local APIC.

use crate::cpu::Cpu;
use crate::signals::Signals;
use crate::vm::VmShared;
use clock::Timers;
use std::sync::Arc;

/// The local APIC of one vCPU. Shared: any thread delivers to it.
pub(crate) struct Lapic {}

impl Lapic {
    pub(crate) fn new(_id: u32, _signals: Arc<Signals>, _timers: &Timers) -> Arc<Lapic> {
        Arc::new(Lapic {})
    }
    /// The register offset when `gpa` is in this APIC's page and it is in xAPIC mode.
    pub(crate) fn mmio_offset(&self, _gpa: u64) -> Option<u32> {
        None
    }
    /// The vCPU goes to sleep: returns how long at most (nanoseconds), and takes over from the timer thread.
    pub(crate) fn sleep_begins(&self) -> Option<u64> {
        None
    }
    /// The vCPU has slept: fires the timer if it is due, gives it back to the timer thread otherwise.
    pub(crate) fn sleep_ends(&self) {}
    /// Guest time was paused or resumed.
    pub(crate) fn clock_changed(&self) {}
}

impl VmShared {
    /// Delivers a message-signalled interrupt.
    pub(crate) fn deliver_message(&self, _address: u64, _data: u32) {}
}

impl Cpu {
    pub(crate) fn lapic_mmio_read(&mut self, _offset: u32, _bytes: &mut [u8]) {}
    pub(crate) fn lapic_mmio_write(&mut self, _offset: u32, _bytes: &[u8]) {}
    /// Takes the next interrupt to deliver, from the local APIC or the legacy controller.
    pub(crate) fn next_interrupt(&mut self) -> Option<u8> {
        None
    }
}
