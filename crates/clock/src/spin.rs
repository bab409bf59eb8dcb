//! Waiting a moment for another thread before going to sleep.
//!
//! To wake a thread that sleeps costs some 50 µs where the host's processor sleeps, too; a request to a disk that the page cache
//! answers takes not much more. Both sides of a device wait so: the vCPU that has halted, and the worker that has nothing to
//! do. It is worth it only while what is waited for comes soon, and while nobody else wants this processor: a thread that
//! sleeps instead is preferred when it wakes, and one that gives way is not.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// How long one thread waits awake, as it turns out.
#[derive(Clone, Debug, Default)]
pub struct Spin {
    /// How long what is waited for may take.
    budget: Duration,
    /// Short sleeps in a row.
    short: u32,
    /// Waits to come that go without, and how many do after the next one in vain.
    left_out: u32,
    penalty: u32,
    /// Somebody else wanted the processor.
    rests_until: Option<Instant>,
    /// Whether it waits then by letting others run.
    gives_way: bool,
}

impl Spin {
    /// Nobody waits longer than this awake.
    const LONGEST: Duration = Duration::from_micros(200);
    /// Two looks with more than this between them: the processor was another thread's, for what a scheduler gives at a time.
    const GAP: Duration = Duration::from_millis(1);
    /// So long nobody waits awake after that.
    const REST: Duration = Duration::from_millis(250);
    const PENALTY_MAX: u32 = 64;
    /// So many short sleeps say that another comes. An idle guest has one now and then.
    const ENOUGH: u32 = 3;
    /// Who lets others run meanwhile waits no longer than this: they take more than they are offered.
    const LONGEST_GIVING_WAY: Duration = Duration::from_micros(50);

    /// For a thread that serves others: where processors are scarce it still waits a little, and lets those run that bring what it
    /// waits for.
    pub fn giving_way() -> Spin {
        Spin { gives_way: true, ..Spin::default() }
    }

    /// Waits until something is ready, no longer than what has been found worth it, nor than `limit`. Returns whether it is ready.
    pub fn until(&mut self, limit: Option<Duration>, mut ready: impl FnMut() -> bool) -> bool {
        if ready() {
            return true;
        }
        if self.short < Self::ENOUGH {
            return false;
        }
        let begun = Instant::now();
        if self.rests_until.is_some_and(|end| begun < end) {
            let budget = self.budget.min(Self::LONGEST_GIVING_WAY);
            while self.gives_way && begun.elapsed() < budget {
                std::thread::yield_now();
                if ready() {
                    return true;
                }
            }
            return false;
        }
        if self.left_out > 0 {
            self.left_out -= 1;
            return false;
        }
        self.rests_until = None;
        let mut last = begun;
        loop {
            (0..8).for_each(|_| spin_loop());
            let now = Instant::now();
            if now - last > Self::GAP {
                self.rests_until = Some(now + Self::REST);
                return ready();
            }
            if ready() {
                self.penalty = 0;
                return true;
            }
            if limit.is_some_and(|limit| now - begun >= limit) {
                return false;
            }
            if now - begun >= self.budget {
                // It took longer than it used to, or whoever brings it waits for this very processor.
                self.penalty = (self.penalty * 2).clamp(1, Self::PENALTY_MAX);
                (self.left_out, self.short) = (self.penalty, 0);
                return false;
            }
            last = now;
        }
    }

    /// Tells how long the thread has slept after that.
    pub fn slept(&mut self, slept: Duration) {
        let is_short = slept < Self::LONGEST;
        self.short = if is_short { (self.short + 1).min(Self::ENOUGH) } else { 0 };
        self.budget = (slept * 2).min(Self::LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has slept so long again and again.
    fn after(slept: Duration) -> Spin {
        let mut spin = Spin::default();
        (0..Spin::ENOUGH).for_each(|_| spin.slept(slept));
        spin
    }

    const SHORT: Duration = Duration::from_micros(60);

    fn looks(spin: &mut Spin, limit: Option<Duration>) -> u32 {
        let mut looks = 0;
        spin.until(limit, || {
            looks += 1;
            false
        });
        looks
    }

    #[test]
    fn it_waits_only_while_that_is_worth_it() {
        let mut spin = Spin::default();
        assert_eq!(looks(&mut spin, None), 1, "nothing is known yet");
        for _ in 1..Spin::ENOUGH {
            spin.slept(SHORT);
            assert_eq!(looks(&mut spin, None), 1, "once is not enough");
        }
        spin.slept(SHORT);
        assert_eq!((spin.budget, spin.short), (SHORT * 2, Spin::ENOUGH));
        spin.slept(Duration::from_micros(150));
        assert_eq!(spin.budget, Spin::LONGEST);
        // Whatever comes of it, something that is there is found.
        assert!(spin.until(None, || true));
        spin.slept(Duration::from_millis(1));
        assert_eq!(looks(&mut spin, None), 1, "it took long");
    }

    #[test]
    fn waiting_in_vain_is_tried_less_and_less() {
        let mut spin = Spin { penalty: 2, ..after(SHORT) };
        // Unless this test is kept from the processor meanwhile.
        if looks(&mut spin, None) > 1 && spin.rests_until.is_none() {
            assert_eq!((spin.left_out, spin.penalty, spin.short), (4, 4, 0));
            (0..Spin::ENOUGH).for_each(|_| spin.slept(SHORT));
            for _ in 0..4 {
                assert_eq!(looks(&mut spin, None), 1);
            }
            assert_eq!(spin.left_out, 0);
        }
        let mut spin = Spin { penalty: 64, ..after(SHORT) };
        let mut late = 0;
        let ready = spin.until(None, || {
            late += 1;
            late == 2
        });
        assert!(ready && (spin.penalty == 0 || spin.rests_until.is_some()), "{spin:?}");
    }

    #[test]
    fn who_was_kept_from_the_processor_sleeps_for_a_while() {
        let mut spin = Spin { rests_until: Some(Instant::now() + Spin::REST * 1000), ..after(SHORT) };
        assert_eq!(looks(&mut spin, None), 1);
        let begun = Instant::now();
        spin.rests_until = Some(begun);
        looks(&mut spin, None);
        assert_ne!(spin.rests_until, Some(begun), "the time is over");
        // A gap between two looks. The second wait is long enough for one, whatever was found before.
        spin = Spin { budget: Spin::GAP * 4, ..after(SHORT) };
        let mut seen = 0;
        spin.until(None, || {
            seen += 1;
            let begun = Instant::now();
            while seen == 2 && begun.elapsed() < Spin::GAP * 2 {}
            false
        });
        assert!(spin.rests_until.is_some(), "{spin:?}");
    }
}
