//! How a device's worker hands requests to a disk.

use crate::{Buffers, Disk, Durability, Error, Unmap};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// [`Disk::read`] of the buffers' length.
    Read,
    /// [`Disk::write`] of the buffers' length.
    Write(Durability),
    /// [`Disk::flush`].
    Flush,
    /// [`Disk::discard`] of so many bytes.
    Discard(u64),
    /// [`Disk::write_zeroes`] of so many bytes.
    WriteZeroes(u64, Unmap, Durability),
}

/// A request to a disk.
#[derive(Debug)]
pub struct Request {
    /// Names the request in its [`Completion`]; the queue does not look at it.
    pub token: u64,
    /// What to do.
    pub kind: RequestKind,
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// The data; empty for the kinds that move none.
    pub buffers: Buffers<'static>,
}

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// The request's token.
    pub token: u64,
    /// What came of it.
    pub result: Result<(), Error>,
    /// The request's buffers, to be used again.
    pub buffers: Buffers<'static>,
}

/// A queue of requests to a disk, used by one thread.
///
/// Requests in flight together are not ordered: a caller that needs one done before another waits for
/// its completion first. A queue that is dropped waits for what is in flight.
pub trait IoQueue: Send {
    /// Takes a request. It may do it at once, blocking, or begin it and return.
    ///
    /// # Panics
    /// When [`IoQueue::room`] is 0: the caller's mistake.
    fn submit(&mut self, request: Request);

    /// Begins what was submitted, for queues that collect requests. Called after the last `submit` of a
    /// batch.
    fn kick(&mut self) {}

    /// The next finished request, or `None` when there is none now. Never blocks.
    fn complete(&mut self) -> Option<Completion>;

    /// How many more requests it takes now.
    fn room(&self) -> usize;

    /// How many requests were submitted and not yet returned by `complete`.
    fn in_flight(&self) -> usize;

    /// A descriptor that is readable while [`IoQueue::complete`] has something to give; `None` for a
    /// queue that finishes everything inside `submit`.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// A queue that does each request on the submitting thread, inside `submit`.
pub struct BlockingQueue<D: Disk + ?Sized> {
    disk: Arc<D>,
    depth: usize,
    done: VecDeque<Completion>,
}

impl<D: Disk + ?Sized> BlockingQueue<D> {
    /// Creates a queue of `depth` requests.
    ///
    /// # Panics
    /// When `depth` is 0.
    pub fn new(disk: Arc<D>, depth: usize) -> BlockingQueue<D> {
        assert!(depth > 0, "a queue has room for a request");
        BlockingQueue { disk, depth, done: VecDeque::new() }
    }
}

impl<D: Disk + ?Sized> IoQueue for BlockingQueue<D> {
    fn submit(&mut self, request: Request) {
        assert!(self.room() > 0, "the queue is full");
        let Request { token, kind, offset, mut buffers } = request;
        let result = match kind {
            RequestKind::Read => self.disk.read(offset, &mut buffers),
            RequestKind::Write(durability) => self.disk.write(offset, &buffers, durability),
            RequestKind::Flush => self.disk.flush(),
            RequestKind::Discard(len) => self.disk.discard(offset, len),
            RequestKind::WriteZeroes(len, unmap, durability) => {
                self.disk.write_zeroes(offset, len, unmap, durability)
            }
        };
        self.done.push_back(Completion { token, result, buffers });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn room(&self) -> usize {
        self.depth - self.done.len()
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
