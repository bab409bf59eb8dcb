//! The local APIC (SDM vol. 3A, chapter 11), in xAPIC and x2APIC mode, and the paravirtual registers that
//! KVM guests know.
//!
//! ```text
//!   other vCPUs, devices, timer thread            the vCPU's own thread
//!   ----------------------------------            ---------------------
//!   message --> route --> accept: IRR |= vector   next_interrupt: IRR -> ISR, vector to the IDT
//!                           |                     registers read and written (MMIO or MSR)
//!                           '--> raise INTERRUPT  end of interrupt: ISR cleared, I/O APIC told
//! ```
//!
//! Every register is an atomic word, so a message is delivered without a lock: it sets a bit and raises a
//! signal. Only the vCPU's own thread moves vectors from IRR to ISR and ends them. The timer has a lock
//! of its own that is held for a few instructions; it is taken before any lock of the timer thread.
//!
//! Version 0x14 with timer, thermal, performance, LINT0, LINT1 and error vectors; no CMCI, no
//! suppression of end-of-interrupt broadcasts. RAM hides the page where a guest moves it into RAM. System management interrupts are ignored: there is no
//! such mode.

mod accept;
mod message;
mod msr;
mod paravirt;
mod registers;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod timer;

use crate::signals::{Signals, signal};
use clock::{Clock, Timers};
use paravirt::Paravirt;
use spec::*;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use timer::TimerState;
use x86::apic::{self, reg};

/// The local APIC of one vCPU. Shared: any thread delivers to it.
pub(crate) struct Lapic {
    id: u32,
    signals: Arc<Signals>,
    clock: Arc<Clock>,
    /// IA32_APIC_BASE.
    base: AtomicU64,
    /// The registers by offset / 16. IRR and TMR are also set by other threads; all others are written
    /// by the vCPU's own thread and read by whoever routes messages.
    registers: [AtomicU32; 64],
    /// Errors since the error status register was last written (§11.5.3).
    errors: AtomicU32,
    /// Vector of the last start-up message.
    startup_vector: AtomicU8,
    /// A message asked for an interrupt of the legacy controller.
    external: AtomicBool,
    /// Another vCPU asked for the end of a halt; the present or else the next HLT ends at once.
    unhalted: AtomicBool,
    timer: Mutex<TimerState>,
    /// Rings on the timer thread, at or before the deadline of the timer while the vCPU executes.
    alarm: clock::Timer,
    /// KVM's paravirtual registers; the vCPU's own thread.
    paravirt: Paravirt,
}

/// How the registers are reached (figure 11-27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApicMode {
    /// There is no local APIC; LINT0 is the interrupt pin.
    Disabled,
    /// In memory.
    XApic,
    /// By model-specific registers.
    X2Apic,
}

impl ApicMode {
    fn of(base: u64) -> ApicMode {
        match (base & apic::base::ENABLE != 0, base & apic::base::X2APIC != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }
}

impl Lapic {
    /// Creates the APIC of the vCPU with this ID in its state after power-up.
    pub(crate) fn new(id: u32, signals: Arc<Signals>, timers: &Timers) -> Arc<Lapic> {
        let bsp = if id == 0 { apic::base::BSP } else { 0 };
        Arc::new_cyclic(|this: &std::sync::Weak<Lapic>| {
            let this = this.clone();
            let lapic = Lapic {
                id,
                signals,
                clock: timers.clock().clone(),
                base: AtomicU64::new(apic::DEFAULT_BASE | apic::base::ENABLE | bsp),
                registers: [const { AtomicU32::new(0) }; 64],
                errors: AtomicU32::new(0),
                startup_vector: AtomicU8::new(0),
                external: AtomicBool::new(false),
                unhalted: AtomicBool::new(false),
                timer: Mutex::default(),
                alarm: timers.timer(move || {
                    if let Some(lapic) = this.upgrade() {
                        lapic.alarm_rang();
                    }
                }),
                paravirt: Paravirt::default(),
            };
            lapic.reset();
            lapic
        })
    }

    /// INIT: all registers as after power-up, except IA32_APIC_BASE and the ID (§11.4.7.3). The vCPU's
    /// thread.
    pub(crate) fn reset(&self) {
        self.stop_timer();
        for register in &self.registers {
            register.store(0, SeqCst);
        }
        for (lvt, _) in LVTS {
            self.set(lvt, LVT_MASKED);
        }
        if self.id == 0 {
            // What firmware sets up and kernels that are started without it rely on: LINT0 of the
            // bootstrap processor passes interrupts of the legacy controller ("virtual wire").
            self.set(reg::LVT_LINT0, apic::delivery::EXTINT << 8);
        }
        self.set(reg::SVR, 0xff);
        self.set(reg::DFR, u32::MAX);
        self.set(reg::VERSION, VERSION);
        self.set_ids();
        self.errors.store(0, SeqCst);
        self.external.store(false, SeqCst);
        self.unhalted.store(false, SeqCst);
    }

    /// The ID register, and in x2APIC mode the logical ID that follows from it (§11.12.10.2).
    fn set_ids(&self) {
        match self.mode() {
            ApicMode::X2Apic => {
                self.set(reg::ID, self.id);
                self.set(reg::LDR, x2apic_logical_id(self.id));
            }
            _ => self.set(reg::ID, self.id << 24),
        }
    }

    fn get(&self, register: u32) -> u32 {
        self.registers[(register >> 4) as usize].load(SeqCst)
    }

    fn set(&self, register: u32, value: u32) {
        self.registers[(register >> 4) as usize].store(value, SeqCst);
    }

    fn mode(&self) -> ApicMode {
        ApicMode::of(self.base.load(SeqCst))
    }

    /// Whether IA32_APIC_BASE enables the APIC: CPUID reports it only then (§11.4.3).
    pub(crate) fn is_enabled(&self) -> bool {
        self.mode() != ApicMode::Disabled
    }

    /// Whether software has enabled it: otherwise it takes no fixed interrupts and its local vectors are
    /// masked (§11.4.7.2).
    fn is_software_enabled(&self) -> bool {
        self.get(reg::SVR) & SVR_ENABLE != 0
    }

    /// The register offset when `gpa` is in this APIC's page and it is in xAPIC mode.
    pub(crate) fn mmio_offset(&self, gpa: u64) -> Option<u32> {
        let base = self.base.load(std::sync::atomic::Ordering::Relaxed);
        let inside = gpa & !0xfff == base & apic::base::ADDRESS;
        (inside && ApicMode::of(base) == ApicMode::XApic).then_some((gpa & 0xfff) as u32)
    }

    /// The page number of the last start-up message's code.
    pub(crate) fn take_startup_vector(&self) -> u8 {
        self.startup_vector.load(SeqCst)
    }

    /// Ends the vCPU's present or else next halt, whether or not interrupts are enabled: what one that
    /// waits for a lock asks for (KVM's "kick"). Any thread.
    pub(crate) fn unhalt(&self) {
        self.unhalted.store(true, SeqCst);
        self.signals.raise(signal::UNHALT);
    }

    /// Whether [`Lapic::unhalt`] was called since this was last asked. The vCPU's thread, while halted.
    pub(crate) fn take_unhalted(&self) -> bool {
        self.unhalted.swap(false, SeqCst)
    }
}

/// Cluster in the upper half, one bit of sixteen in the lower (§11.12.10.2).
fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}
