//! A queue that does what would wait for storage on threads of its own.
//!
//! ```text
//!   submit ── can be done without waiting ──> done
//!      └───── flush, discard, cold read ────> jobs ──> thread … thread ──> finished ──> complete
//! ```
//!
//! Handing work to another thread costs more than most requests do: what lies in the host's page cache is read
//! on the spot ([`Disk::read_now`]), and plain writes, which end there, are too. What is left is slow enough to
//! be worth a thread, and meanwhile the device goes on with other requests.

use crate::io_queue::{Completion, IoQueue, Request, RequestKind, perform};
use crate::{Disk, Durability};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Threads of one queue. They come into being as they are needed.
const THREADS_MAX: usize = 8;

/// A queue with threads, for disks that block.
pub struct PoolQueue<D: Disk + ?Sized> {
    disk: Arc<D>,
    depth: usize,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Finished, and not yet taken.
    done: VecDeque<Completion>,
    /// Given to threads, and not yet in `done`.
    away: usize,
}

struct Shared {
    jobs: Mutex<Jobs>,
    wanted: Condvar,
    finished: Mutex<Vec<Completion>>,
    /// Whether `event` has been written since it was last read.
    signalled: AtomicBool,
    event: OwnedFd,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Request>,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl<D: Disk + ?Sized> PoolQueue<D> {
    /// Creates a queue of `depth` requests, which has no threads yet.
    ///
    /// # Errors
    /// When the host gives no event descriptor.
    ///
    /// # Panics
    /// When `depth` is 0.
    pub fn new(disk: Arc<D>, depth: usize) -> io::Result<PoolQueue<D>> {
        assert!(depth > 0, "a queue has room for a request");
        let shared = Shared {
            jobs: Mutex::default(),
            wanted: Condvar::new(),
            finished: Mutex::default(),
            signalled: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        };
        Ok(PoolQueue {
            disk,
            depth,
            shared: Arc::new(shared),
            threads: Vec::new(),
            done: VecDeque::new(),
            away: 0,
        })
    }

    /// Gives a request to a thread; does it here when there is none to be had.
    fn send_away(&mut self, request: Request) {
        let mut jobs = self.shared.jobs();
        if jobs.idle <= jobs.queue.len() && self.threads.len() < THREADS_MAX {
            let (disk, shared) = (self.disk.clone(), self.shared.clone());
            if let Ok(thread) = Builder::new().name("disk".into()).spawn(move || shared.work(&*disk)) {
                self.threads.push(thread);
            }
        }
        if self.threads.is_empty() {
            drop(jobs);
            return self.done.push_back(perform(&*self.disk, request));
        }
        jobs.queue.push_back(request);
        drop(jobs);
        self.away += 1;
        self.shared.wanted.notify_one();
    }

    fn collect(&mut self) {
        if !self.shared.signalled.load(Ordering::Acquire) {
            return;
        }
        // Whoever finishes something from here on writes again.
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
        self.shared.signalled.store(false, Ordering::SeqCst);
        let finished = std::mem::take(&mut *self.shared.finished());
        self.away -= finished.len();
        self.done.extend(finished);
    }
}

impl Shared {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finished(&self) -> MutexGuard<'_, Vec<Completion>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn work<D: Disk + ?Sized>(&self, disk: &D) {
        loop {
            let mut jobs = self.jobs();
            let request = loop {
                if let Some(request) = jobs.queue.pop_front() {
                    break request;
                }
                if jobs.closed {
                    return;
                }
                jobs.idle += 1;
                jobs = self.wanted.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.idle -= 1;
            };
            drop(jobs);
            let completion = perform(disk, request);
            self.finished().push(completion);
            if !self.signalled.swap(true, Ordering::SeqCst) {
                // It counts to 2⁶⁴ before it is full.
                let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
            }
        }
    }
}

impl<D: Disk + ?Sized> IoQueue for PoolQueue<D> {
    fn submit(&mut self, mut request: Request) {
        assert!(self.room() > 0, "the queue is full");
        let result = match request.kind {
            RequestKind::Read => self.disk.read_now(request.offset, &mut request.buffers),
            RequestKind::Write(Durability::AtFlush) => {
                Some(self.disk.write(request.offset, &request.buffers, Durability::AtFlush))
            }
            _ => None,
        };
        match result {
            Some(result) => {
                let Request { token, buffers, .. } = request;
                self.done.push_back(Completion { token, result, buffers });
            }
            None => self.send_away(request),
        }
    }

    fn submit_and_wait(&mut self, request: Request) {
        assert!(self.room() > 0, "the queue is full");
        self.done.push_back(perform(&*self.disk, request));
    }

    fn complete(&mut self) -> Option<Completion> {
        if self.away > 0 {
            self.collect();
        }
        self.done.pop_front()
    }

    fn room(&self) -> usize {
        self.depth - self.in_flight()
    }

    fn in_flight(&self) -> usize {
        self.away + self.done.len()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.event.as_fd())
    }
}

impl<D: Disk + ?Sized> Drop for PoolQueue<D> {
    fn drop(&mut self) {
        self.shared.jobs().closed = true;
        self.shared.wanted.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
