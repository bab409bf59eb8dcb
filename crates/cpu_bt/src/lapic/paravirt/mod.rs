//! KVM's paravirtual registers (Linux, Documentation/virt/kvm/x86/msr.rst): clock, steal time, end of
//! interrupt. Which of them a guest may use is said by the hypervisor leaf of CPUID.
//!
//! All structures lie in guest memory at addresses that the guest chooses. Where there is no RAM,
//! nothing is written.

mod clock;
mod eoi;
mod steal;
#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use x86::msr;

/// The registers of one vCPU and what follows from them. Only the vCPU's own thread uses it; atomic
/// because it lives beside the APIC that all threads share.
#[derive(Default)]
pub(super) struct Paravirt {
    /// MSR_KVM_WALL_CLOCK, as last written.
    wall_clock: AtomicU64,
    /// MSR_KVM_SYSTEM_TIME.
    system_time: AtomicU64,
    /// MSR_KVM_STEAL_TIME.
    steal_time: AtomicU64,
    /// MSR_KVM_PV_EOI_EN.
    eoi: AtomicU64,
    /// MSR_KVM_POLL_CONTROL, inverted, so that it is one after reset.
    no_poll: AtomicBool,
    /// The guest has been told that it may end the interrupt in service by clearing a bit in its memory.
    eoi_offered: AtomicBool,
    /// What the host had withheld of the thread when steal time was last reported, and when that was.
    withheld_ns: AtomicU64,
    reported_at_tsc: AtomicU64,
}

/// Bit 0 of all address registers: the structure is in use.
const ENABLED: u64 = 1;

/// Older numbers of the two clock registers.
const WALL_CLOCK_OLD: u32 = 0x11;
const SYSTEM_TIME_OLD: u32 = 0x12;

impl Cpu {
    /// Reads a paravirtual register.
    pub(crate) fn kvm_read_msr(&mut self, number: u32) -> Result<u64> {
        let state = &self.lapic.paravirt;
        Ok(match number {
            msr::KVM_WALL_CLOCK | WALL_CLOCK_OLD => state.wall_clock.load(Relaxed),
            msr::KVM_SYSTEM_TIME | SYSTEM_TIME_OLD => state.system_time.load(Relaxed),
            msr::KVM_STEAL_TIME => state.steal_time.load(Relaxed),
            msr::KVM_EOI_EN => state.eoi.load(Relaxed),
            msr::KVM_POLL_CONTROL => !state.no_poll.load(Relaxed) as u64,
            _ => return Err(Fault::GP0),
        })
    }

    /// Writes a paravirtual register.
    pub(crate) fn kvm_write_msr(&mut self, number: u32, value: u64) -> Result<()> {
        match number {
            msr::KVM_WALL_CLOCK | WALL_CLOCK_OLD => {
                self.lapic.paravirt.wall_clock.store(value, Relaxed);
                self.write_wall_clock(value);
            }
            msr::KVM_SYSTEM_TIME | SYSTEM_TIME_OLD => {
                self.lapic.paravirt.system_time.store(value, Relaxed);
                self.update_paravirt_clock();
            }
            msr::KVM_STEAL_TIME => {
                // 64 bytes, aligned; the other low bits are reserved.
                if value & 0x3e != 0 {
                    return Err(Fault::GP0);
                }
                self.enable_steal_time(value);
            }
            msr::KVM_EOI_EN => {
                // Four bytes, aligned.
                if value & ENABLED != 0 && value & 2 != 0 {
                    return Err(Fault::GP0);
                }
                self.paravirt_end_of_interrupt();
                self.lapic.paravirt.eoi.store(value, Relaxed);
            }
            msr::KVM_POLL_CONTROL => {
                if value > 1 {
                    return Err(Fault::GP0);
                }
                self.lapic.paravirt.no_poll.store(value == 0, Relaxed);
            }
            _ => return Err(Fault::GP0),
        }
        Ok(())
    }

    /// The registers for a saved state, by number.
    pub(crate) fn kvm_save_msrs(&mut self) -> Vec<(u32, u64)> {
        self.paravirt_end_of_interrupt();
        let state = &self.lapic.paravirt;
        vec![
            (msr::KVM_WALL_CLOCK, state.wall_clock.load(Relaxed)),
            (msr::KVM_SYSTEM_TIME, state.system_time.load(Relaxed)),
            (msr::KVM_STEAL_TIME, state.steal_time.load(Relaxed)),
            (msr::KVM_EOI_EN, state.eoi.load(Relaxed)),
            (msr::KVM_POLL_CONTROL, !state.no_poll.load(Relaxed) as u64),
        ]
    }

    /// Restores one of the registers of [`Cpu::kvm_save_msrs`]; the clock in guest memory is renewed,
    /// the wall clock is left as the guest read it at boot. `TSC_ADJUST` comes first.
    pub(crate) fn kvm_restore_msr(&mut self, number: u32, value: u64) -> Result<()> {
        if number == msr::KVM_WALL_CLOCK {
            self.lapic.paravirt.wall_clock.store(value, Relaxed);
            return Ok(());
        }
        self.kvm_write_msr(number, value)
    }

    /// INIT: nothing of the guest's is in use any more.
    pub(crate) fn kvm_reset(&mut self) {
        self.paravirt_end_of_interrupt();
        let state = &self.lapic.paravirt;
        for register in [&state.wall_clock, &state.system_time, &state.steal_time, &state.eoi] {
            register.store(0, Relaxed);
        }
        state.no_poll.store(false, Relaxed);
    }
}
