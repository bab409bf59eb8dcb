//! The threads that serve queues.
//!
//! ```text
//!        ┌──────────── More ───────────┐
//!        v                             │
//!   ── work() ── Done ── spin a little ── nothing ── arm() ── nothing ── poll(2) ──┐
//!        ^                     │ something             │ something                │
//!        └─────────────────────┴──────────────────────┴───────────────────────────┘
//!   stop: ── drain() ── the Work is handed back by join
//! ```

use crate::Kick;
use crate::queue::{Chain, Queue, RingError};
use clock::Spin;
use memory::Ram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What came of a call to [`Work::work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There was nothing to do.
    Idle,
    /// All there was is done.
    Done,
    /// A batch is done and more is there: call again.
    More,
}

impl Progress {
    /// `Done` or `Idle`.
    pub fn done(did_something: bool) -> Progress {
        if did_something { Progress::Done } else { Progress::Idle }
    }

    /// The more pressing of two.
    pub fn and(self, other: Progress) -> Progress {
        match (self, other) {
            (Progress::More, _) | (_, Progress::More) => Progress::More,
            (Progress::Done, _) | (_, Progress::Done) => Progress::Done,
            _ => Progress::Idle,
        }
    }
}

/// The serving of some queues: state and steps, without a thread. Tests and fuzzers call the steps
/// themselves.
pub trait Work: Any + Send {
    /// Does what can be done now, a bounded batch of it. Called after every wake-up, for whatever reason.
    fn work(&mut self) -> Progress;

    /// Whether there is something to do; a cheap look, without side effects on the rings.
    fn is_pending(&self) -> bool;

    /// Asks the drivers of its queues to notify; returns whether there is something to do already.
    fn arm(&mut self) -> bool;

    /// Tells what to wait for. Called after `arm`.
    fn wait<'a>(&'a self, wait: &mut Wait<'a>);

    /// Finishes what is in flight. Nothing is begun any more.
    fn drain(&mut self) {}
}

/// Answers the requests in a queue, a queue's worth at most. `each` answers one and says how many bytes it has written; a
/// request that cannot be answered ends the use of the queue.
pub(crate) fn serve(
    queue: &mut Queue,
    chain: &mut Chain,
    mut each: impl FnMut(&Chain, &Arc<Ram>) -> Result<u32, RingError>,
) -> Progress {
    let ram = queue.ram().clone();
    let mut batch = queue.size();
    queue.disarm();
    while batch > 0 && queue.pop(chain) {
        batch -= 1;
        match each(chain, &ram) {
            Ok(written) => queue.push(chain.head(), written),
            Err(error) => queue.fail(error),
        }
    }
    queue.signal();
    match queue.has_available() {
        true => Progress::More,
        false => Progress::done(batch < queue.size()),
    }
}

/// What a worker waits for.
#[derive(Default)]
pub struct Wait<'a> {
    fds: Vec<PollFd<'a>>,
    kicks: Vec<(usize, &'a Kick)>,
    timeout: Option<Duration>,
}

impl<'a> Wait<'a> {
    /// Waits for an event. It is taken note of before the next `work`.
    pub fn kick(&mut self, kick: &'a Kick) {
        self.kicks.push((self.fds.len(), kick));
        self.fds.push(PollFd::new(kick, PollFlags::IN));
    }

    /// Waits for a descriptor to become readable.
    pub fn readable(&mut self, fd: BorrowedFd<'a>) {
        self.fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }

    /// Waits for a descriptor to become writable.
    pub fn writable(&mut self, fd: BorrowedFd<'a>) {
        self.fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
    }

    /// Waits no longer than this.
    pub fn at_most(&mut self, timeout: Duration) {
        self.timeout = Some(self.timeout.map_or(timeout, |other| other.min(timeout)));
    }

    fn run(mut self) {
        let timeout = self
            .timeout
            .map(|t| Timespec { tv_sec: t.as_secs().min(1 << 30) as _, tv_nsec: t.subsec_nanos() as _ });
        // An interrupted wait is a wake-up for no reason, which `work` is prepared for.
        let _ = poll(&mut self.fds, timeout.as_ref());
        for (index, kick) in self.kicks {
            if !self.fds[index].revents().is_empty() {
                kick.clear();
            }
        }
    }
}

/// A thread at work. Dropping it stops it.
pub struct Worker {
    thread: Option<JoinHandle<Box<dyn Work>>>,
    stop: Arc<Stop>,
}

struct Stop {
    asked: AtomicBool,
    kick: Kick,
}

impl Worker {
    /// Starts a thread. `name` is shown by the host's tools (15 bytes of it).
    ///
    /// # Errors
    /// The work itself, when the host gives no thread or descriptor.
    pub fn start(name: &str, work: Box<dyn Work>) -> Result<Worker, Box<dyn Work>> {
        let Ok(kick) = Kick::new() else { return Err(work) };
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), kick });
        // A thread that does not come into being drops its closure, but not what is on the shelf.
        let shelf = Arc::new(Mutex::new(Some(work)));
        let (seen, from) = (stop.clone(), shelf.clone());
        let take = |shelf: &Mutex<Option<_>>| {
            shelf.lock().unwrap_or_else(PoisonError::into_inner).take().expect("taken once")
        };
        match Builder::new().name(name.to_owned()).spawn(move || run(take(&from), &seen)) {
            Ok(thread) => Ok(Worker { thread: Some(thread), stop }),
            Err(_) => Err(take(&shelf)),
        }
    }

    /// Asks the thread to stop, without waiting.
    pub fn cancel(&self) {
        self.stop.asked.store(true, Ordering::Release);
        self.stop.kick.notify();
    }

    /// Waits until the thread has drained what is in flight, and takes its work back.
    pub fn join(mut self) -> Box<dyn Work> {
        self.cancel();
        let thread = self.thread.take().expect("joined once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut work: Box<dyn Work>, stop: &Stop) -> Box<dyn Work> {
    let mut spin = Spin::giving_way();
    while !stop.asked.load(Ordering::Acquire) {
        match work.work() {
            Progress::More => continue,
            Progress::Done => {
                let pending = || work.is_pending() || stop.asked.load(Ordering::Acquire);
                if spin.until(None, pending) {
                    continue;
                }
            }
            Progress::Idle => {}
        }
        if work.arm() {
            continue;
        }
        let mut wait = Wait::default();
        wait.readable(stop.kick.as_fd());
        work.wait(&mut wait);
        let asleep = Instant::now();
        wait.run();
        spin.slept(asleep.elapsed());
    }
    work.drain();
    work
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    /// Moves numbers from a list to a channel, two at a time.
    struct Mover {
        list: Arc<Mutex<Vec<u32>>>,
        kick: Arc<Kick>,
        out: Sender<u32>,
        drained: bool,
    }

    impl Work for Mover {
        fn work(&mut self) -> Progress {
            let mut list = self.list.lock().unwrap();
            let len = list.len();
            for number in list.drain(..len.min(2)) {
                self.out.send(number).unwrap();
            }
            if list.is_empty() { Progress::done(len > 0) } else { Progress::More }
        }
        fn is_pending(&self) -> bool {
            !self.list.lock().unwrap().is_empty()
        }
        fn arm(&mut self) -> bool {
            self.is_pending()
        }
        fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
            wait.kick(&self.kick);
        }
        fn drain(&mut self) {
            self.drained = true;
        }
    }

    #[test]
    fn a_worker_wakes_works_and_is_handed_back_drained() {
        let (list, kick) = (Arc::new(Mutex::new(vec![1, 2, 3])), Arc::new(Kick::new().unwrap()));
        let (out, received) = channel();
        let mover = Mover { list: list.clone(), kick: kick.clone(), out, drained: false };
        let worker = Worker::start("mover", Box::new(mover)).ok().unwrap();
        for round in 0..100 {
            list.lock().unwrap().extend([round, round + 1]);
            kick.notify();
            if round % 2 == 0 {
                // Only when all has come is the worker asleep, or about to be.
                while !list.lock().unwrap().is_empty() {
                    std::thread::yield_now();
                }
            }
        }
        let numbers: Vec<u32> = received.iter().take(203).collect();
        assert_eq!(numbers[..7], [1, 2, 3, 0, 1, 1, 2]);
        let back: Box<dyn Any> = worker.join();
        assert!(back.downcast::<Mover>().unwrap().drained);
    }
}
