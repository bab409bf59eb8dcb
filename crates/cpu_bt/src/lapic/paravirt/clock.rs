//! The paravirtual clock (pvclock): guest time as a line over the TSC, written once.
//!
//! Guest time is derived from the TSC and from nothing else, so the line that is written when the guest
//! asks for it holds for as long as the machine lives, through pauses too, and is the same for all
//! vCPUs: the guest may compare their clocks (`TSC_STABLE`).

use super::*;

/// `pvclock_vcpu_time_info`: offsets of its fields.
mod time_info {
    pub(super) const VERSION: u64 = 0;
    pub(super) const TSC_TIMESTAMP: u64 = 8;
    pub(super) const SYSTEM_TIME: u64 = 16;
    pub(super) const TSC_TO_SYSTEM_MUL: u64 = 24;
    /// Shift, flags and two bytes of padding.
    pub(super) const SHIFT_AND_FLAGS: u64 = 28;
}

/// The clocks of all vCPUs are one.
const TSC_STABLE: u32 = 1 << 0;

/// The factor that turns TSC ticks into nanoseconds: `(ticks << shift) * mul / 2^32`, with `mul` as large
/// as it can be.
pub(super) fn tsc_to_system(tsc_hz: u64) -> (u32, i8) {
    // mul = 10^9 * 2^(32 - shift) / hz, in [2^31, 2^32).
    let scaled = |shift: i32| {
        let numerator = 1_000_000_000u128 << (64 - shift);
        (numerator / tsc_hz as u128 + (1 << 31)) >> 32
    };
    let mut shift = 0;
    while scaled(shift) > u32::MAX as u128 {
        shift += 1;
    }
    while scaled(shift) < 1 << 31 {
        shift -= 1;
    }
    (scaled(shift) as u32, shift as i8)
}

impl Cpu {
    /// Writes the clock's line to where the guest wants it. The version is odd meanwhile; in between
    /// steps of two, it never repeats.
    pub(in crate::lapic) fn update_paravirt_clock(&mut self) {
        let address = self.lapic.paravirt.system_time.load(Relaxed);
        if address & ENABLED == 0 {
            return;
        }
        let at = address & !ENABLED;
        let Some(version) = self.ram.load::<u32>(at + time_info::VERSION) else { return };
        let version = version.wrapping_add(1) | 1;
        let adjust = self.sys.tsc_adjust;
        let (mul, shift) = tsc_to_system(self.vm.clock.tsc_hz());
        // Where vCPUs' TSCs differ, clocks read on different ones may differ by what the guest's own
        // adjustment was rounded to.
        let flags = if adjust == 0 { TSC_STABLE } else { 0 };
        let ram = &self.ram;
        ram.store(at + time_info::VERSION, version);
        // The structure is aligned to four bytes only.
        for (offset, value) in
            [(time_info::TSC_TIMESTAMP, adjust), (time_info::SYSTEM_TIME, self.vm.clock.tsc_to_ns(0))]
        {
            ram.store(at + offset, value as u32);
            ram.store(at + offset + 4, (value >> 32) as u32);
        }
        ram.store(at + time_info::TSC_TO_SYSTEM_MUL, mul);
        ram.store(at + time_info::SHIFT_AND_FLAGS, shift as u8 as u32 | flags << 8);
        ram.store(at + time_info::VERSION, version.wrapping_add(1));
    }

    /// `pvclock_wall_clock`: the wall-clock time at which guest time was zero: version, seconds,
    /// nanoseconds.
    pub(super) fn write_wall_clock(&mut self, at: u64) {
        let Some(version) = self.ram.load::<u32>(at) else { return };
        let version = version.wrapping_add(1) | 1;
        let base = self.vm.clock.wall_base_ns();
        self.ram.store(at, version);
        self.ram.store(at + 4, (base / 1_000_000_000) as u32);
        self.ram.store(at + 8, (base % 1_000_000_000) as u32);
        self.ram.store(at, version.wrapping_add(1));
    }
}
