//! Limits of rate: so many bytes and so many operations in a second, with bursts.
//!
//! Each limit is kept as one point in time: until when everything that was let through is paid for at the agreed
//! rate (the generic cell rate algorithm, as in ITU-T I.371). While that point lies no further ahead than a burst
//! takes, the next operation is let through, however large it is; it pays afterwards. So no operation is too
//! large to ever go through, and over time the rate is kept.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much of something in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units per second, at least 1.
    pub per_second: u64,
    /// Units that may go through at once after a rest.
    pub burst: u64,
}

/// The limits of a device; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of data.
    pub bytes: Option<Rate>,
    /// Operations: requests to a disk, frames of a card.
    pub operations: Option<Rate>,
}

/// Keeps limits, for all queues of a device together. They can be changed at any time.
#[derive(Debug)]
pub struct Limiter {
    /// Whether there are limits: looked at without the lock.
    is_on: AtomicBool,
    /// Operations that were begun, and their bytes, with limits and without.
    operations: AtomicU64,
    bytes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    bytes_paid: Instant,
    operations_paid: Instant,
}

/// However much was let through at once, nothing waits longer than this for it.
const DEBT_MAX: Duration = Duration::from_secs(3600);

impl Default for Limiter {
    /// One without limits.
    fn default() -> Limiter {
        Limiter::new(Limits::default())
    }
}

impl Limiter {
    /// A limiter with these limits.
    pub fn new(limits: Limits) -> Limiter {
        let now = Instant::now();
        let state = State { limits, bytes_paid: now, operations_paid: now };
        let is_on = AtomicBool::new(limits != Limits::default());
        Limiter { is_on, operations: AtomicU64::new(0), bytes: AtomicU64::new(0), state: Mutex::new(state) }
    }

    /// Operations that were begun so far, and their bytes.
    pub fn counted(&self) -> (u64, u64) {
        (self.operations.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// What is kept.
    pub fn limits(&self) -> Limits {
        self.state().limits
    }

    /// Changes the limits. What was let through before counts no more. Whoever waits has to be woken.
    pub fn set(&self, limits: Limits) {
        let now = Instant::now();
        *self.state() = State { limits, bytes_paid: now, operations_paid: now };
        self.is_on.store(limits != Limits::default(), Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the next operation has to wait; `None` when it may begin.
    pub fn delay(&self) -> Option<Duration> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        self.state().delay(Instant::now())
    }

    /// Counts operations that were begun, and their data.
    pub fn charge(&self, operations: u64, bytes: u64) {
        self.operations.fetch_add(operations, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.is_on.load(Ordering::Acquire) {
            self.state().charge(Instant::now(), operations, bytes);
        }
    }
}

impl State {
    fn each(&self) -> [(Option<Rate>, Instant); 2] {
        [(self.limits.bytes, self.bytes_paid), (self.limits.operations, self.operations_paid)]
    }

    fn delay(&self, now: Instant) -> Option<Duration> {
        let delays = self.each().into_iter().filter_map(|(rate, paid)| {
            let ahead = paid.saturating_duration_since(now);
            let delay = ahead.saturating_sub(time_for(rate?, rate?.burst));
            (!delay.is_zero()).then_some(delay)
        });
        delays.max()
    }

    fn charge(&mut self, now: Instant, operations: u64, bytes: u64) {
        let later = |rate: Option<Rate>, paid: Instant, amount: u64| match rate {
            Some(rate) => paid.max(now) + time_for(rate, amount),
            None => paid,
        };
        self.bytes_paid = later(self.limits.bytes, self.bytes_paid, bytes);
        self.operations_paid = later(self.limits.operations, self.operations_paid, operations);
    }
}

/// How long so much takes at a rate.
fn time_for(rate: Rate, amount: u64) -> Duration {
    let ns = u128::from(amount) * 1_000_000_000 / u128::from(rate.per_second.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)).min(DEBT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets through what it can until `end`, by a clock of its own; how much that was.
    fn through(state: &mut State, begin: Instant, end: Duration, bytes: u64) -> u64 {
        let (mut now, mut done) = (Duration::ZERO, 0);
        loop {
            match state.delay(begin + now) {
                Some(delay) => now += delay,
                None => {
                    state.charge(begin + now, 1, bytes);
                    done += 1;
                }
            }
            if now > end {
                return done;
            }
        }
    }

    fn state(limits: Limits, now: Instant) -> State {
        State { limits, bytes_paid: now, operations_paid: now }
    }

    #[test]
    fn over_time_the_rate_is_kept_whatever_the_size() {
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let now = Instant::now();
        for (limits, bytes, expected) in [
            // Ten seconds at 1 MiB/s, a burst of a quarter: and the one that crosses the edge.
            (Limits { bytes: rate(1 << 20, 1 << 18), operations: None }, 4096, 10 * 256 + 64 + 1),
            // Each operation takes four seconds to pay for.
            (Limits { bytes: rate(1 << 20, 0), operations: None }, 4 << 20, 3),
            (Limits { bytes: None, operations: rate(100, 1) }, 4096, 1000 + 1 + 1),
            // The stricter one counts.
            (Limits { bytes: rate(1 << 30, 1), operations: rate(10, 1) }, 4096, 100 + 1 + 1),
        ] {
            let done = through(&mut state(limits, now), now, Duration::from_secs(10), bytes);
            assert!(done.abs_diff(expected) <= 1, "{limits:?}: {done} instead of {expected}");
        }
    }

    #[test]
    fn rest_is_not_saved_up_beyond_the_burst() {
        let limits = Limits { bytes: None, operations: Some(Rate { per_second: 10, burst: 5 }) };
        let now = Instant::now();
        let mut state = state(limits, now);
        let first = through(&mut state, now, Duration::from_millis(1), 0);
        let later = through(&mut state, now + Duration::from_secs(1000), Duration::from_millis(1), 0);
        assert_eq!(first, later);
        assert_eq!(first, 6);
    }

    #[test]
    fn what_was_begun_is_counted_with_limits_and_without() {
        let limiter = Limiter::new(Limits::default());
        limiter.charge(1, 512);
        limiter.set(Limits { operations: Some(Rate { per_second: 10, burst: 1 }), bytes: None });
        limiter.charge(2, 1024);
        assert_eq!(limiter.counted(), (3, 1536));
    }

    #[test]
    fn without_limits_nothing_waits_and_changes_count_at_once() {
        let limiter = Limiter::new(Limits::default());
        limiter.charge(1 << 40, 1 << 60);
        assert_eq!(limiter.delay(), None);
        limiter.set(Limits { bytes: Some(Rate { per_second: 1, burst: 0 }), operations: None });
        assert_eq!(limiter.delay(), None);
        limiter.charge(1, u64::MAX);
        assert!(limiter.delay().is_some_and(|delay| delay <= DEBT_MAX));
        limiter.set(Limits::default());
        assert_eq!(limiter.delay(), None);
    }
}
