//! Keeps a machine to its share of the host's processors, where no control group does.
//!
//! The processor time of the whole process counts, so that what devices do for the guest is part of it. When it has
//! used more than its share, its vCPUs rest until the share has caught up.

use crate::vcpu::Gate;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the use of processors is looked at while there is a limit.
const PERIOD: Duration = Duration::from_millis(10);
/// After a rest, the share of so much time may be used at once.
const BURST: Duration = Duration::from_millis(50);
/// Rests are cut into pieces of at most this, so that a changed limit is soon in force.
const REST_MAX: Duration = Duration::from_millis(200);

/// The limit of one machine. Without one it costs nothing.
pub struct Throttle {
    shared: Arc<Shared>,
    watching: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct State {
    /// In hundredths of a processor.
    percent: Option<u32>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Throttle {
    /// No limit yet, for the vCPUs behind this gate.
    pub fn new(gate: Arc<Gate>) -> Throttle {
        let shared = Shared { state: Mutex::default(), changed: Condvar::new(), gate };
        Throttle { shared: Arc::new(shared), watching: false }
    }

    /// Limits the machine to so many hundredths of a processor, or not at all.
    ///
    /// # Errors
    /// When the host refuses the thread that watches over it.
    pub fn set(&mut self, percent: Option<u32>) -> io::Result<()> {
        self.shared.lock().percent = percent;
        self.shared.changed.notify_one();
        if percent.is_some() && !self.watching {
            let shared = self.shared.clone();
            std::thread::Builder::new().name("throttle".into()).spawn(move || watch(&shared))?;
            self.watching = true;
        }
        Ok(())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

fn watch(shared: &Shared) {
    let mut account: Option<Account> = None;
    let mut state = shared.lock();
    while !state.ended {
        let Some(percent) = state.percent else {
            account = None;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        let (now, used) = (Instant::now(), used());
        let account = account.get_or_insert(Account { at: now, used, balance: 0.0 });
        if let Some(rest) = account.settle(now, used, percent) {
            shared.gate.rest(rest.min(REST_MAX));
        }
        state = shared.lock();
        let waited = shared.changed.wait_timeout(state, PERIOD);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Processor time that this process has used.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// What a machine may still use.
struct Account {
    at: Instant,
    used: Duration,
    /// Seconds of processor time; below zero when more was used than is due.
    balance: f64,
}

impl Account {
    /// Counts what has passed and was used since the last time; how long the machine has to rest if that was too
    /// much.
    fn settle(&mut self, now: Instant, used: Duration, percent: u32) -> Option<Duration> {
        let share = f64::from(percent) / 100.0;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let spent = used.saturating_sub(self.used).as_secs_f64();
        (self.at, self.used) = (now, used);
        self.balance = (self.balance + passed * share - spent).min(BURST.as_secs_f64() * share);
        (self.balance < 0.0).then(|| Duration::from_secs_f64((-self.balance / share).min(60.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_too_much_is_rested() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut account = Account { at: start, used: ms(0), balance: 0.0 };
        // A whole processor where half of one is due: as long again.
        let rest = account.settle(start + ms(10), ms(10), 50).expect("it was too much");
        assert!(rest.abs_diff(ms(10)) < Duration::from_micros(1), "{rest:?}");
        assert_eq!(account.settle(start + ms(20), ms(10), 50), None);
        // A long rest gives a burst and no more.
        assert_eq!(account.settle(start + ms(10_020), ms(10), 50), None);
        assert_eq!(account.settle(start + ms(10_021), ms(30), 50), None);
        assert!(account.settle(start + ms(10_022), ms(60), 50).is_some());
        // Two processors' worth for a machine that has two.
        let mut account = Account { at: start, used: ms(0), balance: 0.0 };
        assert_eq!(account.settle(start + ms(10), ms(20), 200), None);
    }
}
