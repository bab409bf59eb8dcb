//! The registers as the guest reads and writes them, in memory (SDM vol. 3A, table 11-1).

use super::message::Message;
use super::*;
use crate::cpu::Cpu;

/// What a register write does outside the APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// A level-triggered interrupt has ended.
    EndOfInterrupt(u8),
    /// Something is to be sent.
    Send(Message),
}

impl Lapic {
    /// Reads a register; `None` when there is none to read at this offset.
    pub(super) fn read(&self, register: u32) -> Option<u32> {
        Some(match register {
            reg::PPR => self.processor_priority() as u32,
            reg::TIMER_CURRENT => self.current_count(),
            reg::EOI => 0,
            reg::ISR..reg::ESR if register & 0xf == 0 => self.get(register),
            reg::ID | reg::VERSION | reg::TPR | reg::APR | reg::LDR | reg::DFR | reg::SVR | reg::ESR => {
                self.get(register)
            }
            reg::ICR_LOW | reg::ICR_HIGH | reg::TIMER_INITIAL | reg::TIMER_DIVIDE => self.get(register),
            _ if writable_lvt(register).is_some() => self.get(register),
            _ => return None,
        })
    }

    /// Writes a register; `None` when there is none to write at this offset. Reserved bits are dropped.
    pub(super) fn write(&self, register: u32, value: u32) -> Option<Effect> {
        match register {
            // The ID cannot be changed on processors that know x2APIC mode.
            reg::ID => {}
            reg::TPR => self.write_tpr(value as u8),
            reg::EOI => {
                if let Some(vector) = self.end_of_interrupt() {
                    return Some(Effect::EndOfInterrupt(vector));
                }
            }
            reg::LDR => self.set(reg::LDR, value & 0xff00_0000),
            reg::DFR => self.set(reg::DFR, value | 0x0fff_ffff),
            reg::SVR => self.write_svr(value),
            // Writing makes the errors since the last write visible (§11.5.3).
            reg::ESR => self.set(reg::ESR, self.errors.swap(0, SeqCst)),
            reg::ICR_LOW => {
                let low = value & !ICR_BUSY;
                self.set(reg::ICR_LOW, low);
                return Some(self.command(low, self.get(reg::ICR_HIGH) >> 24, 0xff));
            }
            reg::ICR_HIGH => self.set(reg::ICR_HIGH, value & 0xff00_0000),
            reg::TIMER_INITIAL => self.write_initial_count(value),
            reg::TIMER_DIVIDE => self.write_divide(value & 0xb),
            _ => self.write_lvt(register, value)?,
        }
        Some(Effect::None)
    }

    /// An interrupt command was written.
    pub(super) fn command(&self, low: u32, id: u32, broadcast: u32) -> Effect {
        match Message::from_icr(self.id, low, id, broadcast) {
            Some(message) if message.has_illegal_vector() => {
                self.error(ESR_SEND_ILLEGAL_VECTOR);
                Effect::None
            }
            Some(message) => Effect::Send(message),
            None => Effect::None,
        }
    }

    /// Task priority (§11.8.3.1).
    pub(super) fn write_tpr(&self, value: u8) {
        let before = self.get(reg::TPR);
        self.set(reg::TPR, value as u32);
        if (value as u32) < before {
            self.reconsider();
        }
    }

    fn write_svr(&self, value: u32) {
        self.set(reg::SVR, value & SVR_WRITABLE);
        if value & SVR_ENABLE == 0 {
            // Local vectors are masked while software disables the APIC, and stay so (§11.4.7.2).
            for (lvt, _) in LVTS {
                self.set(lvt, self.get(lvt) | LVT_MASKED);
            }
        }
    }

    fn write_lvt(&self, register: u32, value: u32) -> Option<()> {
        let mut value = value & writable_lvt(register)?;
        if !self.is_software_enabled() {
            value |= LVT_MASKED;
        }
        match register {
            reg::LVT_TIMER => self.write_timer_vector(value),
            _ => self.set(register, value),
        }
        if register == reg::LVT_LINT0 {
            // The legacy controller may have been waiting for this.
            self.signals.raise(signal::INTERRUPT);
        }
        Some(())
    }
}

/// The writable bits of a local vector register.
pub(super) fn writable_lvt(register: u32) -> Option<u32> {
    LVTS.iter().find(|(lvt, _)| *lvt == register).map(|(_, bits)| *bits)
}

impl Cpu {
    /// Reads from the APIC's page: up to four bytes of the 32-bit register in each 16 bytes; what else
    /// is undefined reads as zero (§11.4.1).
    pub(crate) fn lapic_mmio_read(&mut self, offset: u32, bytes: &mut [u8]) {
        bytes.fill(0);
        let register = offset & 0xff0;
        if register == reg::PPR || (reg::ISR..reg::TMR).contains(&register) {
            self.paravirt_end_of_interrupt();
        }
        let Some(value) = self.lapic.read(register) else {
            self.lapic.error(ESR_ILLEGAL_REGISTER);
            return;
        };
        let value = value.to_le_bytes();
        for (byte, from) in bytes.iter_mut().zip(value.iter().skip((offset & 0xf) as usize)) {
            *byte = *from;
        }
    }

    /// Writes to the APIC's page: only whole registers (§11.4.1).
    pub(crate) fn lapic_mmio_write(&mut self, offset: u32, bytes: &[u8]) {
        let Some(value) = bytes.first_chunk::<4>().filter(|_| offset & 0xf == 0) else { return };
        self.paravirt_end_of_interrupt();
        match self.lapic.write(offset, u32::from_le_bytes(*value)) {
            Some(effect) => self.lapic_effect(effect),
            None => self.lapic.error(ESR_ILLEGAL_REGISTER),
        }
    }

    pub(super) fn lapic_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => self.io().end_of_interrupt(vector),
            Effect::Send(message) => {
                self.vm.route(&message);
            }
        }
    }

    /// CR8: the class of the task priority (§11.8.6).
    pub(crate) fn read_cr8(&self) -> u64 {
        (self.lapic.get(reg::TPR) >> 4 & 0xf) as u64
    }

    /// Writes CR8. The caller has refused values above 15.
    pub(crate) fn write_cr8(&mut self, value: u64) {
        self.lapic.write_tpr((value as u8 & 0xf) << 4);
    }
}
