//! Steal time: for how long the vCPU wanted to run and the host did not let it; and whether it runs, so
//! that others do not spin for a vCPU that sleeps, nor interrupt it to flush a TLB that it does not use.

use super::*;
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// `kvm_steal_time`: offsets of its fields.
mod steal_time {
    pub(super) const STEAL: u64 = 0;
    pub(super) const VERSION: u64 = 8;
    pub(super) const PREEMPTED: u64 = 16;
}

/// The vCPU does not run.
const PREEMPTED: u8 = 1 << 0;
/// Another vCPU asks for a flush of the TLB before this one runs again.
const FLUSH_TLB: u8 = 1 << 1;

/// How often steal time is reported at most, per second of guest time.
const REPORTS_PER_SECOND: u64 = 50;

thread_local! {
    /// The scheduler's account of this thread.
    static SCHEDSTAT: RefCell<Option<Option<File>>> = const { RefCell::new(None) };
}

/// For how long this thread has waited for a processor, in nanoseconds; zero where the host does not
/// say.
pub(super) fn withheld_ns() -> u64 {
    SCHEDSTAT.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| File::open("/proc/thread-self/schedstat").ok());
        let mut text = [0; 64];
        let len = file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        parse_schedstat(&text[..len]).unwrap_or(0)
    })
}

/// The second of three numbers: time on the CPU, time waiting for it, number of slices.
pub(super) fn parse_schedstat(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

impl Cpu {
    fn steal_time_address(&self) -> Option<u64> {
        let register = self.lapic.paravirt.steal_time.load(Relaxed);
        (register & ENABLED != 0).then_some(register & !0x3f)
    }

    /// Begins to account: what was withheld before does not count.
    pub(super) fn enable_steal_time(&mut self, value: u64) {
        self.lapic.paravirt.steal_time.store(value, Relaxed);
        self.lapic.paravirt.withheld_ns.store(withheld_ns(), Relaxed);
        self.lapic.paravirt.reported_at_tsc.store(self.vm.clock.tsc(), Relaxed);
        if let Some(at) = self.steal_time_address() {
            self.ram.store(at + steal_time::PREEMPTED, 0u8);
        }
    }

    /// Reports steal time if the last report is old enough. Called for every interrupt.
    #[inline]
    pub(in crate::lapic) fn update_steal_time(&mut self) {
        let state = &self.lapic.paravirt;
        if state.steal_time.load(Relaxed) & ENABLED != 0 {
            let now = self.vm.clock.tsc();
            let interval = self.vm.clock.tsc_hz() / REPORTS_PER_SECOND;
            if now.wrapping_sub(state.reported_at_tsc.load(Relaxed)) >= interval {
                state.reported_at_tsc.store(now, Relaxed);
                self.report_steal_time(withheld_ns());
            }
        }
    }

    /// Adds to the guest's account what was withheld since the last report. The version is odd
    /// meanwhile.
    pub(super) fn report_steal_time(&mut self, withheld: u64) {
        let Some(at) = self.steal_time_address() else { return };
        // Less than before: another thread runs the vCPU now.
        let before = self.lapic.paravirt.withheld_ns.swap(withheld, Relaxed);
        let more = withheld.saturating_sub(before);
        let (Some(steal), Some(version)) =
            (self.ram.load::<u64>(at + steal_time::STEAL), self.ram.load::<u32>(at + steal_time::VERSION))
        else {
            return;
        };
        if more > 0 {
            let version = version.wrapping_add(1) | 1;
            self.ram.store(at + steal_time::VERSION, version);
            self.ram.store(at + steal_time::STEAL, steal.wrapping_add(more));
            self.ram.store(at + steal_time::VERSION, version.wrapping_add(1));
        }
    }

    /// The vCPU goes to sleep: others see it.
    pub(crate) fn paravirt_sleep_begins(&mut self) {
        if let Some(at) = self.steal_time_address() {
            self.ram.store(at + steal_time::PREEMPTED, PREEMPTED);
        }
    }

    /// The vCPU has slept: does what others have left for it to do. Before anything that translates an
    /// address.
    pub(crate) fn paravirt_sleep_ends(&mut self) {
        let Some(at) = self.steal_time_address() else { return };
        let at = at + steal_time::PREEMPTED;
        // Others change it at the same time.
        while let Some(state) = self.ram.load::<u8>(at) {
            if self.ram.compare_exchange::<u8>(at, state, 0) == Some(true) {
                if state & FLUSH_TLB != 0 {
                    self.flush_tlb_all();
                }
                return;
            }
        }
    }
}
