//! Guest time: a pausable clock and the timers driven by it.
//!
//! A virtual machine has one [`Clock`]. It is derived from the host's invariant time-stamp counter, so
//! that the guest's TSC, its paravirtual clock, and every device timer are views of one quantity and
//! cannot drift apart. Pausing the clock freezes all of them; a saved clock continues from where it
//! stood.
//!
//! [`Spin`] is about the host's time: how long a thread waits awake before it sleeps.
//! [`Timers`] runs callbacks at guest times, on one thread for the whole machine. Devices and engines
//! take time from here and from nowhere else.

mod spin;
mod timers;
mod tsc;

pub use spin::Spin;
pub use timers::{Timer, Timers};

use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Guest time in nanoseconds since the machine was created, without the time it was paused.
pub type Nanos = u64;

/// The clock of one virtual machine.
#[derive(Debug)]
pub struct Clock {
    /// What to add to the host's TSC to get the guest's, while running.
    offset: AtomicU64,
    running: AtomicBool,
    /// The guest TSC at the moment of the pause; valid while not running.
    frozen: Mutex<u64>,
    tsc_hz: u64,
    /// What the host's TSC is multiplied by, in units of 2^-48, where the guest's runs at another frequency.
    scale: Option<u64>,
    /// Wall-clock time at guest TSC 0, in nanoseconds since 1970.
    wall_base_ns: AtomicU64,
}

/// Begins to measure the host's TSC, if its frequency has to be measured at all: called at a program's start, so that
/// [`host_tsc_hz`] need not wait.
pub fn begin_measuring_host_tsc() {
    tsc::note_early();
}

/// The frequency of the host's time-stamp counter in Hz.
pub fn host_tsc_hz() -> u64 {
    tsc::host_frequency_hz()
}

/// The same, right to a ten-thousandth and found quickly: to compare, not to keep time by.
pub fn host_tsc_hz_roughly() -> u64 {
    tsc::rough_frequency_hz()
}

/// Whether a frequency is that of the host's TSC but for an error of measurement.
pub fn is_host_tsc_hz(hz: u64) -> bool {
    let host = host_tsc_hz_roughly();
    hz.abs_diff(host) <= host / 1_000_000 * TOLERANCE_PPM
}

/// Two measurements of one processor differ by less, and Linux corrects a clock that is wrong by as much (NTP's limit).
const TOLERANCE_PPM: u64 = 500;

/// Bits of the fraction in [`Clock`]'s scale: a year's ticks are right to a few hundred.
const SCALE_BITS: u32 = 48;

/// The frequencies that a guest's TSC can have, in Hz.
pub const TSC_HZ: std::ops::RangeInclusive<u64> = 100_000_000..=100_000_000_000;

/// A clock as saved with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSaved {
    /// Guest TSC when saved.
    pub tsc: u64,
    /// Frequency of the guest TSC in Hz.
    pub tsc_hz: u64,
}

impl Clock {
    /// Creates a running clock whose guest TSC starts at zero.
    pub fn new() -> Clock {
        Clock::starting_at(0, tsc::host_frequency_hz(), None)
    }

    /// The same with a guest TSC of this frequency, in [`TSC_HZ`], whatever the host's is.
    pub fn with_tsc_hz(tsc_hz: u64) -> Clock {
        Clock::starting_at(0, tsc_hz, scale_to(tsc_hz))
    }

    /// Creates a clock that continues a saved one; it stands still until [`Clock::resume`]. The guest sees
    /// its wall clock step forward by the time it was away; its TSC does not jump. The frequency is the
    /// saved one, which the guest knows, in [`TSC_HZ`].
    pub fn restore(saved: ClockSaved) -> Clock {
        let clock = Clock::starting_at(saved.tsc, saved.tsc_hz, scale_to(saved.tsc_hz));
        clock.pause();
        *clock.frozen.lock().unwrap() = saved.tsc;
        clock
    }

    fn starting_at(guest_tsc: u64, tsc_hz: u64, scale: Option<u64>) -> Clock {
        let clock = Clock {
            offset: AtomicU64::new(guest_tsc.wrapping_sub(scaled(scale))),
            running: AtomicBool::new(true),
            frozen: Mutex::new(guest_tsc),
            tsc_hz: tsc_hz.max(1),
            scale,
            wall_base_ns: AtomicU64::new(0),
        };
        clock.sync_wall();
        clock
    }

    /// Takes the wall clock from the host again: at creation, and after a pause or a restore.
    pub fn sync_wall(&self) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64;
        self.wall_base_ns.store(wall.wrapping_sub(self.now()), Ordering::Relaxed);
    }

    /// The guest's TSC now.
    #[inline]
    pub fn tsc(&self) -> u64 {
        if self.running.load(Ordering::Acquire) {
            scaled(self.scale).wrapping_add(self.offset.load(Ordering::Relaxed))
        } else {
            *self.frozen.lock().unwrap()
        }
    }

    /// Whether the guest's TSC runs at another frequency than the host's.
    pub fn is_scaled(&self) -> bool {
        self.scale.is_some()
    }

    /// What to add to the host's TSC to get the guest's, where that is not scaled. Changes at [`Clock::resume`]; an engine
    /// that keeps a copy reads it again whenever a vCPU starts to run.
    pub fn tsc_offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// The frequency of the guest TSC in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// Guest time now.
    #[inline]
    pub fn now(&self) -> Nanos {
        self.tsc_to_ns(self.tsc())
    }

    /// Converts a guest TSC value to guest time.
    pub fn tsc_to_ns(&self, tsc: u64) -> Nanos {
        (tsc as u128 * 1_000_000_000 / self.tsc_hz as u128) as u64
    }

    /// Converts guest time to a guest TSC value, rounded up.
    pub fn ns_to_tsc(&self, ns: Nanos) -> u64 {
        (ns as u128 * self.tsc_hz as u128).div_ceil(1_000_000_000) as u64
    }

    /// Wall-clock time of the guest since 1970 (UTC), for real-time clocks.
    pub fn wall(&self) -> Duration {
        Duration::from_nanos(self.wall_base_ns.load(Ordering::Relaxed).wrapping_add(self.now()))
    }

    /// Wall-clock time at guest time 0, in nanoseconds since 1970.
    pub fn wall_base_ns(&self) -> u64 {
        self.wall_base_ns.load(Ordering::Relaxed)
    }

    /// Whether guest time passes.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Freezes guest time. Does nothing when already paused. Call it only when no vCPU runs; timers
    /// stop by themselves.
    pub fn pause(&self) {
        let mut frozen = self.frozen.lock().unwrap();
        if self.running.load(Ordering::Acquire) {
            *frozen = scaled(self.scale).wrapping_add(self.offset.load(Ordering::Relaxed));
            self.running.store(false, Ordering::Release);
        }
    }

    /// Lets guest time go on from where it was paused; the wall clock follows the host again. Wake
    /// [`Timers`] afterwards with [`Timers::clock_changed`].
    pub fn resume(&self) {
        let frozen = self.frozen.lock().unwrap();
        if !self.running.load(Ordering::Acquire) {
            self.offset.store(frozen.wrapping_sub(scaled(self.scale)), Ordering::Relaxed);
            self.running.store(true, Ordering::Release);
        }
        drop(frozen);
        self.sync_wall();
    }

    /// Sets the wall clock, which is the host's otherwise and again after [`Clock::resume`]. For tests, to which it
    /// must not matter when they run.
    pub fn set_wall(&self, wall: Duration) {
        self.wall_base_ns.store((wall.as_nanos() as u64).wrapping_sub(self.now()), Ordering::Relaxed);
    }

    /// Lets time pass on a paused clock, as if it had run for so long; does nothing to a running one. For tests
    /// and fuzzers of devices, which so decide what time it is.
    pub fn pass(&self, ns: Nanos) {
        let mut frozen = self.frozen.lock().unwrap();
        if !self.running.load(Ordering::Acquire) {
            *frozen = frozen.saturating_add(self.ns_to_tsc(ns));
        }
    }

    /// The clock's saved form.
    pub fn save(&self) -> ClockSaved {
        ClockSaved { tsc: self.tsc(), tsc_hz: self.tsc_hz }
    }
}

/// By what the host's TSC is multiplied for a guest's of this frequency; by nothing where it is the host's.
fn scale_to(tsc_hz: u64) -> Option<u64> {
    let factor = || ((u128::from(tsc_hz) << SCALE_BITS) / u128::from(tsc::host_frequency_hz())) as u64;
    (!is_host_tsc_hz(tsc_hz)).then(factor)
}

/// The host's TSC as a guest's with this scale counts it.
#[inline]
fn scaled(scale: Option<u64>) -> u64 {
    let host = tsc::read();
    scale.map_or(host, |scale| ((u128::from(host) * u128::from(scale)) >> SCALE_BITS) as u64)
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_at_the_rate_of_the_host() {
        let clock = Clock::new();
        let (host, guest) = (std::time::Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(50));
        let (host, guest) = (host.elapsed().as_nanos() as i128, (clock.now() - guest) as i128);
        assert!((host - guest).abs() < host / 50, "host {host} ns, guest {guest} ns");
    }

    #[test]
    fn the_quick_answer_is_about_the_precise_one() {
        // A host that is busy at the wrong moment: the best of some counts.
        let off = |_| host_tsc_hz_roughly().abs_diff(host_tsc_hz());
        let best = (0..10).map(off).min().unwrap_or(u64::MAX);
        assert!(best < host_tsc_hz() / 5000, "off by {best} Hz");
    }

    #[test]
    fn a_paused_clock_stands_still_and_goes_on_without_a_jump() {
        let clock = Clock::new();
        clock.pause();
        let at = clock.tsc();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.tsc(), at);
        clock.resume();
        let after = clock.tsc();
        assert!(after >= at && clock.tsc_to_ns(after - at) < 4_000_000);
    }

    #[test]
    fn a_restored_clock_goes_on_where_it_was_saved() {
        let clock = Clock::restore(ClockSaved { tsc: 1 << 60, tsc_hz: 2_000_000_000 });
        assert_eq!((clock.tsc(), clock.is_running(), clock.tsc_hz()), (1 << 60, false, 2_000_000_000));
        clock.resume();
        assert!(clock.tsc() - (1 << 60) < clock.tsc_hz());
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(wall.abs_diff(clock.wall()) < Duration::from_secs(10));
    }

    #[test]
    fn a_tsc_of_another_frequency_counts_at_that_frequency() {
        for hz in [*TSC_HZ.start(), 1_000_000_000, 7_654_321_000, *TSC_HZ.end()] {
            let clock = Clock::with_tsc_hz(hz);
            assert_eq!((clock.tsc_hz(), clock.is_scaled()), (hz, !is_host_tsc_hz(hz)));
            let (began, ticks, now) = (std::time::Instant::now(), clock.tsc(), clock.now());
            std::thread::sleep(Duration::from_millis(50));
            let ticks = clock.tsc() - ticks;
            let (host, guest) = (began.elapsed().as_nanos() as i128, (clock.now() - now) as i128);
            assert!((host - guest).abs() < host / 50, "{hz} Hz: host {host} ns, guest {guest} ns");
            let expected = host as u128 * u128::from(hz) / 1_000_000_000;
            assert!(
                expected.abs_diff(ticks.into()) < expected / 50,
                "{hz} Hz: {ticks} ticks, not {expected}"
            );
            // It goes on without a jump.
            clock.pause();
            let at = clock.tsc();
            clock.resume();
            assert!(clock.tsc() >= at && clock.tsc_to_ns(clock.tsc() - at) < 40_000_000);
        }
        let same = Clock::restore(ClockSaved { tsc: 5, tsc_hz: host_tsc_hz() + host_tsc_hz() / 10_000 });
        assert!(!same.is_scaled(), "an error of measurement is no other frequency");
    }

    #[test]
    fn conversions_agree() {
        let clock = Clock::new();
        for ns in [0, 1, 999, 1_000_000_007, 86_400_000_000_000] {
            let back = clock.tsc_to_ns(clock.ns_to_tsc(ns));
            assert!(back >= ns && back - ns <= 1, "{ns} became {back}");
        }
    }
}
