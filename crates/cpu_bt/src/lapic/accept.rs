//! Vectors on their way: requested (IRR), in service (ISR), ended (SDM vol. 3A, §11.8).

use super::*;
use crate::cpu::Cpu;
use crate::vm::VmShared;
use x86::apic::delivery;

impl Lapic {
    /// Takes a fixed interrupt (§11.8.4). Any thread.
    pub(super) fn accept(&self, vector: u8, level: bool) {
        if !self.is_enabled() || !self.is_software_enabled() {
            return;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        let (word, bit) = word_and_bit(vector);
        let tmr = &self.registers[(reg::TMR >> 4) as usize + word];
        match level {
            true => tmr.fetch_or(bit, SeqCst),
            false => tmr.fetch_and(!bit, SeqCst),
        };
        self.registers[(reg::IRR >> 4) as usize + word].fetch_or(bit, SeqCst);
        self.signals.raise(signal::INTERRUPT);
    }

    /// Delivers what a local vector register says, if it is not masked (§11.5.1). Any thread.
    pub(super) fn local_interrupt(&self, lvt: u32) {
        let value = self.get(lvt);
        if value & LVT_MASKED != 0 {
            return;
        }
        match value >> 8 & 7 {
            delivery::FIXED => self.accept(value as u8, false),
            delivery::NMI => self.signals.raise(signal::NMI),
            delivery::INIT => self.init_received(),
            delivery::EXTINT => {
                self.external.store(true, SeqCst);
                self.signals.raise(signal::INTERRUPT);
            }
            _ => {}
        }
    }

    /// INIT: what came before it does not matter any more.
    pub(super) fn init_received(&self) {
        self.signals.take(signal::SIPI);
        self.signals.raise(signal::INIT);
    }

    /// Notes an error and raises the error interrupt (§11.5.3). An error of the error vector itself is
    /// only noted.
    pub(super) fn error(&self, error: u32) {
        let before = self.errors.fetch_or(error, SeqCst);
        let vector = self.get(reg::LVT_ERROR);
        if vector as u8 >= 16 && before & error == 0 {
            self.local_interrupt(reg::LVT_ERROR);
        }
    }

    /// The highest vector whose bit is set in one of the three 256-bit registers.
    pub(super) fn highest(&self, register: u32) -> Option<u8> {
        let first = (register >> 4) as usize;
        (0..8).rev().find_map(|word| {
            let bits = self.registers[first + word].load(SeqCst);
            (bits != 0).then(|| (word as u32 * 32 + 31 - bits.leading_zeros()) as u8)
        })
    }

    /// Processor priority (§11.8.3.1).
    pub(super) fn processor_priority(&self) -> u8 {
        let task = self.get(reg::TPR) as u8;
        let in_service = self.highest(reg::ISR).unwrap_or(0) & 0xf0;
        if task & 0xf0 >= in_service { task } else { in_service }
    }

    /// The vector that would be delivered now.
    fn deliverable(&self) -> Option<u8> {
        let vector = self.highest(reg::IRR)?;
        (self.is_enabled() && vector & 0xf0 > self.processor_priority() & 0xf0).then_some(vector)
    }

    /// Looks again for something to deliver after a priority was lowered. The vCPU's thread.
    pub(super) fn reconsider(&self) {
        if self.deliverable().is_some() {
            self.signals.raise(signal::INTERRUPT);
        }
    }

    /// Moves the highest deliverable vector into service. The vCPU's thread.
    pub(super) fn take_next(&self) -> Option<u8> {
        let vector = self.deliverable()?;
        let (word, bit) = word_and_bit(vector);
        self.registers[(reg::ISR >> 4) as usize + word].fetch_or(bit, SeqCst);
        self.registers[(reg::IRR >> 4) as usize + word].fetch_and(!bit, SeqCst);
        Some(vector)
    }

    /// Ends the highest vector in service; returns it if the I/O APIC is to hear of it (§11.8.5). The
    /// vCPU's thread.
    pub(super) fn end_of_interrupt(&self) -> Option<u8> {
        let vector = self.highest(reg::ISR)?;
        let (word, bit) = word_and_bit(vector);
        self.registers[(reg::ISR >> 4) as usize + word].fetch_and(!bit, SeqCst);
        self.reconsider();
        self.is_level_triggered(vector).then_some(vector)
    }

    pub(super) fn is_level_triggered(&self, vector: u8) -> bool {
        let (word, bit) = word_and_bit(vector);
        self.registers[(reg::TMR >> 4) as usize + word].load(SeqCst) & bit != 0
    }

    /// Whether the bootstrap processor's LINT0 pin passes interrupts of the legacy controller: in ExtINT
    /// mode, or without an APIC at all (§11.4.3, §11.5.1).
    pub(super) fn passes_external(&self) -> bool {
        let lint0 = self.get(reg::LVT_LINT0);
        !self.is_enabled() || (lint0 & LVT_MASKED == 0 && lint0 >> 8 & 7 == delivery::EXTINT)
    }
}

fn word_and_bit(vector: u8) -> (usize, u32) {
    ((vector / 32) as usize, 1 << (vector % 32))
}

impl VmShared {
    /// Sets the level of the legacy controller's output, which is wired to LINT0 of vCPU 0. Any thread.
    pub(crate) fn set_pic_line(&self, level: bool) {
        let rose = level && !self.pic_line.swap(level, SeqCst);
        if !level {
            self.pic_line.store(false, SeqCst);
        }
        let lapic = &self.lapics[0];
        if level && lapic.passes_external() {
            self.signals[0].raise(signal::INTERRUPT);
        } else if rose && lapic.get(reg::LVT_LINT0) >> 8 & 7 != delivery::EXTINT {
            lapic.local_interrupt(reg::LVT_LINT0);
        }
    }
}

impl Cpu {
    /// Takes the next interrupt to deliver, from the legacy controller or the local APIC.
    pub(crate) fn next_interrupt(&mut self) -> Option<u8> {
        self.paravirt_end_of_interrupt();
        self.update_steal_time();
        let wired = self.id == 0 && self.vm.pic_line.load(SeqCst) && self.lapic.passes_external();
        if wired || self.lapic.external.swap(false, SeqCst) {
            return Some(self.io().pic_acknowledge());
        }
        let vector = self.lapic.take_next()?;
        self.offer_paravirt_end_of_interrupt(vector);
        Some(vector)
    }
}
