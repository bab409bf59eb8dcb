//! The host's time-stamp counter and its frequency.

use std::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Reads the host's TSC.
#[inline]
pub(crate) fn read() -> u64 {
    // SAFETY: RDTSC is available on every x86-64 processor and has no side effects.
    unsafe { _rdtsc() }
}

static HZ: OnceLock<u64> = OnceLock::new();

/// The frequency of the host's TSC in Hz, found once per process.
pub(crate) fn host_frequency_hz() -> u64 {
    *HZ.get_or_init(|| told().unwrap_or_else(|| measured(Duration::from_millis(10))))
}

/// The same, right to a ten-thousandth, in a millisecond at most.
pub(crate) fn rough_frequency_hz() -> u64 {
    HZ.get().copied().or_else(told).unwrap_or_else(|| measured(Duration::from_millis(1)))
}

fn told() -> Option<u64> {
    from_hypervisor().or_else(from_cpuid)
}

/// Hypervisor timing leaf: EAX of 0x40000010 is the TSC frequency in kHz (VMware, KVM).
fn from_hypervisor() -> Option<u64> {
    if __cpuid(1).ecx & (1 << 31) == 0 || __cpuid(0x4000_0000).eax < 0x4000_0010 {
        return None;
    }
    Some(__cpuid(0x4000_0010).eax as u64 * 1000).filter(|hz| *hz > 100_000_000)
}

/// Intel SDM vol. 2A, CPUID leaf 15H: TSC = ECX (crystal, Hz) * EBX / EAX.
fn from_cpuid() -> Option<u64> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid_count(0x15, 0);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(leaf.ecx as u64 * leaf.ebx as u64 / leaf.eax as u64)
}

/// A moment by both clocks.
type Sample = (u64, Instant);

/// The first moment that was noted.
static EARLY: OnceLock<Sample> = OnceLock::new();

/// Notes the present moment, so that whoever asks for the frequency later has to wait less. Called early.
pub(crate) fn note_early() {
    EARLY.get_or_init(sample);
}

fn sample() -> Sample {
    // The tightest of several pairs, so that a preemption between the two reads does not count.
    (0..8)
        .map(|_| {
            let before = read();
            let at = Instant::now();
            let after = read();
            (after - before, before + (after - before) / 2, at)
        })
        .min_by_key(|pair| pair.0)
        .map(|pair| (pair.1, pair.2))
        .expect("eight samples")
}

/// Compares the TSC with the host's monotonic clock over some time at least: from the early moment on, if there is one.
fn measured(over: Duration) -> u64 {
    let (tsc0, at0) = EARLY.get().copied().unwrap_or_else(sample);
    std::thread::sleep(over.saturating_sub(at0.elapsed()));
    let (tsc1, at1) = sample();
    ((tsc1 - tsc0) as u128 * 1_000_000_000 / (at1 - at0).as_nanos()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_moment_is_measured_from_and_agrees() {
        let fresh = measured(Duration::from_millis(20));
        note_early();
        let (_, early) = EARLY.get().expect("noted");
        let long = measured(Duration::from_millis(20));
        assert!(early.elapsed() >= Duration::from_millis(20));
        assert!(fresh.abs_diff(long) < fresh / 1000, "{fresh} {long}");
    }
}
