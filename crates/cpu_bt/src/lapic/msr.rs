//! Model-specific registers of the local APIC: IA32_APIC_BASE, the x2APIC registers and
//! IA32_TSC_DEADLINE (SDM vol. 3A, §11.4.4, §11.5.4.1, §11.12).

use super::registers::writable_lvt;
use super::*;
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use x86::cpuid::PHYS_BITS;
use x86::msr;

impl Lapic {
    /// IA32_APIC_BASE.
    pub(super) fn base(&self) -> u64 {
        self.base.load(SeqCst)
    }

    /// Writes IA32_APIC_BASE; false for a value or transition that does not exist (§11.12.5).
    pub(super) fn write_base(&self, value: u64) -> bool {
        if !is_valid_base(value) {
            return false;
        }
        let (before, after) = (self.mode(), ApicMode::of(value));
        match (before, after) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => return false,
            _ => {}
        }
        self.base.store(value, SeqCst);
        match (before, after) {
            (_, ApicMode::Disabled) if before != after => self.reset(),
            (ApicMode::XApic, ApicMode::X2Apic) => {
                self.set(reg::ICR_HIGH, 0);
                self.set_ids();
            }
            _ => {}
        }
        // The legacy controller may have been waiting for this.
        self.signals.raise(signal::INTERRUPT);
        true
    }

    /// Reads an x2APIC register (table 11-6); `None` for #GP.
    pub(super) fn read_x2apic(&self, number: u32) -> Option<u64> {
        let register = (number - msr::X2APIC_FIRST) << 4;
        match register {
            reg::EOI | reg::SELF_IPI | reg::DFR | reg::APR | reg::ICR_HIGH => None,
            reg::ICR_LOW => Some(self.get(reg::ICR_LOW) as u64 | (self.get(reg::ICR_HIGH) as u64) << 32),
            _ => self.read(register).map(u64::from),
        }
    }

    /// Writes an x2APIC register; `None` for #GP: no such register, read-only, or reserved bits set.
    pub(super) fn write_x2apic(&self, number: u32, value: u64) -> Option<super::registers::Effect> {
        let register = (number - msr::X2APIC_FIRST) << 4;
        let low = value as u32;
        if register == reg::ICR_LOW {
            if low & ICR_RESERVED != 0 {
                return None;
            }
            let (low, id) = (low & !ICR_BUSY, (value >> 32) as u32);
            self.set(reg::ICR_LOW, low);
            self.set(reg::ICR_HIGH, id);
            return Some(self.command(low, id, u32::MAX));
        }
        let writable = match register {
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => SVR_WRITABLE,
            reg::TIMER_INITIAL => u32::MAX,
            reg::TIMER_DIVIDE => 0xb,
            _ => writable_lvt(register)? | LVT_READ_ONLY,
        };
        if value & !(writable as u64) != 0 {
            return None;
        }
        match register {
            reg::SELF_IPI => {
                self.accept(low as u8, false);
                Some(super::registers::Effect::None)
            }
            _ => self.write(register, low),
        }
    }
}

/// Whether IA32_APIC_BASE can have this value (figures 11-5 and 11-26).
pub(super) fn is_valid_base(value: u64) -> bool {
    use apic::base::*;
    let allowed = BSP | X2APIC | ENABLE | ADDRESS & ((1 << PHYS_BITS) - 1);
    value & !allowed == 0 && value & (ENABLE | X2APIC) != X2APIC
}

impl Cpu {
    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    pub(crate) fn lapic_read_msr(&mut self, number: u32) -> Result<u64> {
        match number {
            msr::APIC_BASE => Ok(self.lapic.base()),
            msr::TSC_DEADLINE => Ok(self.lapic.tsc_deadline()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.lapic.mode() == ApicMode::X2Apic => {
                self.paravirt_end_of_interrupt();
                self.lapic.read_x2apic(number).ok_or(Fault::GP0)
            }
            _ => Err(Fault::GP0),
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    pub(crate) fn lapic_write_msr(&mut self, number: u32, value: u64) -> Result<()> {
        match number {
            msr::APIC_BASE => {
                self.paravirt_end_of_interrupt();
                self.lapic.write_base(value).then_some(()).ok_or(Fault::GP0)
            }
            msr::TSC_DEADLINE => {
                self.lapic.write_tsc_deadline(value);
                Ok(())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.lapic.mode() == ApicMode::X2Apic => {
                self.paravirt_end_of_interrupt();
                let effect = self.lapic.write_x2apic(number, value).ok_or(Fault::GP0)?;
                self.lapic_effect(effect);
                Ok(())
            }
            _ => Err(Fault::GP0),
        }
    }

    /// Call after every change of `sys.tsc_adjust`: an armed TSC deadline and the paravirtual clock
    /// follow the vCPU's TSC.
    pub(crate) fn tsc_adjust_changed(&mut self) {
        self.lapic.set_tsc_adjust(self.sys.tsc_adjust);
        self.update_fast();
        self.update_paravirt_clock();
    }
}
