//! Ending an interrupt by clearing a bit in guest memory instead of writing to the APIC.
//!
//! The bit is offered when an interrupt is delivered that nothing else waits behind and that no I/O APIC
//! wants to hear of. Whatever looks at the vectors in service first looks at the bit: when the guest has
//! cleared it, the interrupt has ended; when not, the offer is withdrawn, and the guest writes to the
//! APIC. Both sides are the same thread, so nothing comes between a look and a change.

use super::*;
use crate::cpu::Cpu;
use x86::apic::reg;

const EOI_PENDING: u32 = 1;

impl Cpu {
    fn paravirt_eoi_address(&self) -> Option<u64> {
        let register = self.lapic.paravirt.eoi.load(Relaxed);
        (register & ENABLED != 0).then_some(register & !3)
    }

    /// Performs the end of interrupt that the guest has signalled in memory, or withdraws the offer.
    #[inline]
    pub(in crate::lapic) fn paravirt_end_of_interrupt(&mut self) {
        if self.lapic.paravirt.eoi_offered.load(Relaxed) {
            self.settle_paravirt_eoi();
        }
    }

    /// The vCPU leaves guest execution: what is saved now knows of no offer.
    pub(crate) fn paravirt_settle(&mut self) {
        self.paravirt_end_of_interrupt();
    }

    #[cold]
    fn settle_paravirt_eoi(&mut self) {
        self.lapic.paravirt.eoi_offered.store(false, Relaxed);
        let Some(at) = self.paravirt_eoi_address() else { return };
        let Some(word) = self.ram.load::<u32>(at) else { return };
        if word & EOI_PENDING == 0 {
            // Never level-triggered: those are not offered.
            self.lapic.end_of_interrupt();
        } else {
            self.ram.store(at, word & !EOI_PENDING);
        }
    }

    /// Offers it for the vector that has just gone into service.
    pub(in crate::lapic) fn offer_paravirt_end_of_interrupt(&mut self, vector: u8) {
        let Some(at) = self.paravirt_eoi_address() else { return };
        if self.lapic.is_level_triggered(vector) || self.lapic.highest(reg::IRR).is_some() {
            return;
        }
        if let Some(word) = self.ram.load::<u32>(at) {
            self.ram.store(at, word | EOI_PENDING);
            self.lapic.paravirt.eoi_offered.store(true, Relaxed);
        }
    }
}
