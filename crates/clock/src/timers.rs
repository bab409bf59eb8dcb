//! Timers: callbacks at guest times, on one thread per machine.

use crate::{Clock, Nanos};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

type Callback = Arc<dyn Fn() + Send + Sync>;

/// How long the thread sleeps at most after something has fired and was not armed again at once. Most timers are armed
/// again soon, for later, and to wake the thread for that would take their owner longer than everything else.
const SOON: Nanos = 1_000_000;

/// The timer service of one machine. Cheap to clone.
#[derive(Clone)]
pub struct Timers {
    shared: Arc<Shared>,
    _owner: Arc<Owner>,
}

struct Shared {
    clock: Arc<Clock>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Armed timers by deadline.
    queue: BTreeSet<(Nanos, usize)>,
    slots: Vec<Option<Slot>>,
    /// When the thread will look next; an earlier deadline has to wake it.
    sleeping_until: Nanos,
    quit: bool,
}

struct Slot {
    deadline: Option<Nanos>,
    callback: Callback,
}

/// Stops the thread when the last [`Timers`] goes.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().quit = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.lock().unwrap().take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Timers {
    /// Starts the timer thread for a clock.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn new(clock: Arc<Clock>) -> std::io::Result<Timers> {
        let shared = Arc::new(Shared { clock, state: Mutex::default(), wake: Condvar::new() });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new().name("timers".into()).spawn(move || for_thread.run())?;
        let owner = Owner { shared: shared.clone(), thread: Mutex::new(Some(thread)) };
        Ok(Timers { shared, _owner: Arc::new(owner) })
    }

    /// The clock that drives these timers.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.shared.clock
    }

    /// Creates a disarmed timer. `callback` runs on the timer thread, must be short, and may arm or
    /// disarm any timer, this one included.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let mut state = self.shared.lock();
        let slot = Slot { deadline: None, callback: Arc::new(callback) };
        let id = match state.slots.iter().position(Option::is_none) {
            Some(free) => {
                state.slots[free] = Some(slot);
                free
            }
            None => {
                state.slots.push(Some(slot));
                state.slots.len() - 1
            }
        };
        Timer { shared: self.shared.clone(), id }
    }

    /// Tells the thread that the clock was resumed, so that it computes its sleep anew.
    pub fn clock_changed(&self) {
        self.shared.lock().sleeping_until = 0;
        self.shared.wake.notify_all();
    }
}

/// One timer. Dropping it disarms it.
pub struct Timer {
    shared: Arc<Shared>,
    id: usize,
}

impl Timer {
    /// Arms the timer, or moves it when armed already. A deadline in the past fires at once.
    pub fn arm(&self, deadline: Nanos) {
        let mut state = self.shared.lock();
        state.set(self.id, Some(deadline));
        if deadline < state.sleeping_until {
            drop(state);
            self.shared.wake.notify_all();
        }
    }

    /// Disarms the timer. A callback that has already begun on the timer thread still completes.
    pub fn disarm(&self) {
        self.shared.lock().set(self.id, None);
    }

    /// When the timer will fire, if it is armed.
    pub fn deadline(&self) -> Option<Nanos> {
        self.shared.lock().slots[self.id].as_ref().and_then(|slot| slot.deadline)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.set(self.id, None);
        state.slots[self.id] = None;
    }
}

impl State {
    fn set(&mut self, id: usize, deadline: Option<Nanos>) {
        let State { queue, slots, .. } = self;
        let Some(slot) = slots[id].as_mut() else { return };
        if let Some(old) = std::mem::replace(&mut slot.deadline, deadline) {
            queue.remove(&(old, id));
        }
        if let Some(new) = deadline {
            queue.insert((new, id));
        }
    }

    /// Takes the callback, and the number, of the earliest timer whose time has come.
    fn take_due(&mut self, now: Nanos) -> Option<(Callback, usize)> {
        let &(deadline, id) = self.queue.first()?;
        if deadline > now {
            return None;
        }
        self.set(id, None);
        self.slots[id].as_ref().map(|slot| (slot.callback.clone(), id))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A callback that panicked has not broken the queue: it runs outside the lock.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self) {
        let mut state = self.lock();
        let mut fired = false;
        while !state.quit {
            let running = self.clock.is_running();
            let now = self.clock.now();
            if running && let Some((callback, id)) = state.take_due(now) {
                drop(state);
                callback();
                state = self.lock();
                fired |= state.slots[id].as_ref().is_some_and(|slot| slot.deadline.is_none());
                continue;
            }
            let next = state.queue.first().map(|entry| entry.0).filter(|_| running);
            let soon = (std::mem::take(&mut fired) && running).then_some(now + SOON);
            let next = [next, soon].into_iter().flatten().min();
            state.sleeping_until = next.unwrap_or(Nanos::MAX);
            state = match next {
                Some(at) => {
                    let wait = Duration::from_nanos(at - now);
                    self.wake.wait_timeout(state, wait).map_or_else(|e| e.into_inner().0, |woken| woken.0)
                }
                None => self.wake.wait(state).unwrap_or_else(|e| e.into_inner()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn setup() -> (Arc<Clock>, Timers, mpsc::Sender<u32>, mpsc::Receiver<u32>) {
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let (tx, rx) = mpsc::channel();
        (clock, timers, tx, rx)
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn timers_fire_in_order_of_deadline_and_not_early() {
        let (clock, timers, tx, rx) = setup();
        let make = |n| {
            let tx = tx.clone();
            timers.timer(move || tx.send(n).unwrap())
        };
        let (late, early) = (make(2), make(1));
        let start = clock.now();
        late.arm(start + 30_000_000);
        early.arm(start + 10_000_000);
        assert_eq!(rx.recv_timeout(PATIENCE), Ok(1));
        assert!(clock.now() - start >= 10_000_000);
        assert_eq!(rx.recv_timeout(PATIENCE), Ok(2));
        assert!(clock.now() - start >= 30_000_000);
    }

    #[test]
    fn a_disarmed_or_dropped_timer_does_not_fire() {
        let (clock, timers, tx, rx) = setup();
        let (tx1, tx2) = (tx.clone(), tx.clone());
        let disarmed = timers.timer(move || tx1.send(1).unwrap());
        let dropped = timers.timer(move || tx2.send(2).unwrap());
        let last = timers.timer(move || tx.send(3).unwrap());
        let start = clock.now();
        disarmed.arm(start + 5_000_000);
        dropped.arm(start + 5_000_000);
        last.arm(start + 20_000_000);
        disarmed.disarm();
        drop(dropped);
        assert_eq!(rx.recv_timeout(PATIENCE), Ok(3));
    }

    #[test]
    fn no_timer_fires_while_the_clock_is_paused() {
        let (clock, timers, tx, rx) = setup();
        let timer = timers.timer(move || tx.send(1).unwrap());
        timer.arm(clock.now() + 10_000_000);
        clock.pause();
        assert!(rx.recv_timeout(Duration::from_millis(50)).is_err());
        clock.resume();
        timers.clock_changed();
        assert_eq!(rx.recv_timeout(PATIENCE), Ok(1));
    }

    #[test]
    fn a_timer_that_is_armed_again_after_it_fired_fires_again() {
        let (clock, timers, tx, rx) = setup();
        let timer = timers.timer(move || tx.send(1).unwrap());
        // Sooner and later than the thread looks by itself, and after it has gone to sleep for good.
        for after in [SOON / 4, SOON * 3, 0, SOON * 30, SOON / 2] {
            let deadline = clock.now() + after;
            timer.arm(deadline);
            assert_eq!(rx.recv_timeout(PATIENCE), Ok(1));
            assert!(clock.now() >= deadline);
        }
    }
}
