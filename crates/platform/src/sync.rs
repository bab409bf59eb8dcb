//! Two small tools of the wiring: locking, and bringing an output to the outside in order.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Locks a device. A panic of another thread has not broken a register model: whatever values it holds
/// are values that a guest could have put there.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Publishes the latest state of something to a callback, with no lock held and without a thread ever
/// overtaking another.
///
/// After every change of the state, call [`Publisher::publish`] with a step that reads the state (taking
/// and releasing its lock) and then tells the outside. Steps never run at the same time. Whoever finds
/// another thread publishing leaves its change to that thread, which then does one more step; so does a
/// callback that changes the state again. The last step always begins after the last change.
#[derive(Default)]
pub(crate) struct Publisher {
    requests: AtomicU32,
}

impl Publisher {
    pub(crate) fn publish(&self, mut step: impl FnMut()) {
        if self.requests.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let mut seen = 1;
        loop {
            step();
            match self.requests.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(more) => seen = more,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn the_last_published_state_is_the_latest_whoever_changed_it() {
        let (state, shown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let publisher = Arc::new(Publisher::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        state.fetch_add(1, Ordering::SeqCst);
                        publisher.publish(|| {
                            shown.store(state.load(Ordering::SeqCst), Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert_eq!(shown.load(Ordering::SeqCst), 40_000);
    }

    #[test]
    fn a_step_that_publishes_again_is_repeated_and_not_nested() {
        let publisher = Publisher::default();
        let mut steps = 0;
        let again = || publisher.publish(|| unreachable!("nested"));
        publisher.publish(|| {
            steps += 1;
            if steps < 3 {
                again();
            }
        });
        assert_eq!(steps, 3);
    }
}
