//! Saving and restoring the local APIC.

use super::msr::is_valid_base;
use super::registers::writable_lvt;
use super::*;
use x86::state::LapicState;

/// How many registers a saved state has: offsets 0x000 to 0x3f0.
const REGISTERS: usize = 64;

impl Lapic {
    /// The APIC's state. Only between runs of the vCPU.
    pub(crate) fn save(&self) -> LapicState {
        let mut registers: Vec<u32> = self.registers.iter().map(|register| register.load(SeqCst)).collect();
        registers[(reg::TIMER_CURRENT >> 4) as usize] = self.current_count();
        registers[(reg::PPR >> 4) as usize] = self.processor_priority() as u32;
        // Errors that were not made visible yet are made so: there is no other place for them.
        registers[(reg::ESR >> 4) as usize] |= self.errors.load(SeqCst);
        let start = self.timer.lock().expect("no code panics while it holds the timer").start;
        LapicState { base: self.base(), registers, tsc_deadline: self.tsc_deadline(), timer_start_ns: start }
    }

    /// Replaces the state by a saved one, checked as untrusted input, and starts the timer. Tell
    /// [`Lapic::set_tsc_adjust`] first. Only between runs of the vCPU.
    ///
    /// # Errors
    /// A sentence that says what is wrong; nothing has changed then.
    pub(crate) fn restore(&self, state: &LapicState) -> Result<(), String> {
        self.check(state)?;
        self.stop_timer();
        self.base.store(state.base, SeqCst);
        for (register, value) in self.registers.iter().zip(&state.registers) {
            register.store(*value, SeqCst);
        }
        self.set_ids();
        self.set(reg::TIMER_CURRENT, 0);
        self.set(reg::PPR, 0);
        self.errors.store(0, SeqCst);
        self.external.store(false, SeqCst);
        self.unhalted.store(false, SeqCst);
        self.restore_timer(state);
        // Look for what is pending.
        self.signals.raise(signal::INTERRUPT);
        Ok(())
    }

    fn check(&self, state: &LapicState) -> Result<(), String> {
        if !is_valid_base(state.base) {
            return Err(format!("IA32_APIC_BASE cannot be {:#x}", state.base));
        }
        if state.registers.len() != REGISTERS {
            return Err(format!("{} local APIC registers instead of {REGISTERS}", state.registers.len()));
        }
        let value = |register: u32| state.registers[(register >> 4) as usize];
        let id = if ApicMode::of(state.base) == ApicMode::X2Apic { self.id } else { self.id << 24 };
        if value(reg::ID) != id {
            return Err(format!("the local APIC has ID {:#x} instead of {id:#x}", value(reg::ID)));
        }
        if value(reg::VERSION) != VERSION {
            return Err(format!("local APIC version {:#x} instead of {VERSION:#x}", value(reg::VERSION)));
        }
        let x2apic = ApicMode::of(state.base) == ApicMode::X2Apic;
        let allowed = |register: u32| -> u32 {
            match register {
                reg::ID | reg::VERSION | reg::TIMER_INITIAL | reg::TIMER_CURRENT => u32::MAX,
                reg::TPR | reg::PPR => 0xff,
                reg::LDR if x2apic => u32::MAX,
                reg::LDR => 0xff00_0000,
                reg::DFR => u32::MAX,
                reg::SVR => SVR_WRITABLE,
                reg::ESR => 0xff,
                reg::ICR_LOW => !ICR_BUSY,
                reg::ICR_HIGH if x2apic => u32::MAX,
                reg::ICR_HIGH => 0xff00_0000,
                reg::TIMER_DIVIDE => 0xb,
                // Vectors below 16 are never accepted.
                reg::ISR | reg::TMR | reg::IRR => 0xffff_0000,
                reg::ISR..reg::ESR => u32::MAX,
                _ => writable_lvt(register).unwrap_or(0),
            }
        };
        for index in 0..REGISTERS as u32 {
            let wrong = value(index << 4) & !allowed(index << 4);
            if wrong != 0 {
                return Err(format!("local APIC register {:#x} has bits {wrong:#x} set", index << 4));
            }
        }
        Ok(())
    }
}
