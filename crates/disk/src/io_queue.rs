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

    /// Takes a request and does it before it returns, however long that takes: for a caller that has nothing else to do
    /// meanwhile, and for whom it costs more to be told of its end by another thread.
    ///
    /// # Panics
    /// As [`IoQueue::submit`].
    fn submit_and_wait(&mut self, request: Request) {
        self.submit(request);
    }

    /// Begins what was submitted, for queues that collect requests. Called after the last `submit` of a
    /// batch.
    fn kick(&mut self) {}

    /// The next finished request, or `None` when there is none now. Never blocks.
    fn complete(&mut self) -> Option<Completion>;

    /// How many more requests it takes now.
    fn room(&self) -> usize;

    /// How many requests were submitted and not yet returned by `complete`.
    fn in_flight(&self) -> usize;

    /// A descriptor that is readable when a request has finished after `submit` and `kick` have returned, until
    /// [`IoQueue::complete`] gave it; what finished inside them is there at once. `None` for a queue that
    /// finishes everything inside `submit`.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Does a request here and now.
pub(crate) fn perform<D: Disk + ?Sized>(disk: &D, request: Request) -> Completion {
    let Request { token, kind, offset, mut buffers } = request;
    let result = match kind {
        RequestKind::Read => disk.read(offset, &mut buffers),
        RequestKind::Write(durability) => disk.write(offset, &buffers, durability),
        RequestKind::Flush => disk.flush(),
        RequestKind::Discard(len) => disk.discard(offset, len),
        RequestKind::WriteZeroes(len, unmap, durability) => disk.write_zeroes(offset, len, unmap, durability),
    };
    Completion { token, result, buffers }
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
        self.done.push_back(perform(&*self.disk, request));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, ErrorKind, Image, OpenOptions, PoolQueue, TargetOptions};
    use memory::{Bytes, GuestAddress, Ram};
    use rustix::event::{PollFd, PollFlags, poll};
    use std::path::{Path, PathBuf};

    const SIZE: u64 = 8 << 20;
    const BLOCK: u64 = 64 << 10;

    fn image(name: &str, format: crate::Format) -> (PathBuf, Arc<dyn Disk>) {
        let path = std::env::temp_dir().join(format!("disk-queue-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        crate::create(&path, SIZE, &TargetOptions::new(format)).unwrap();
        let disk = Image::open(&path, &OpenOptions::new(Access::ReadWrite)).unwrap().disk;
        (path, disk)
    }

    /// Makes the host forget what it holds of the file, so that reading it waits for storage.
    fn forget(path: &Path) {
        let file = std::fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    fn wait(queue: &mut dyn IoQueue) -> Vec<Completion> {
        let mut all = Vec::new();
        queue.kick();
        while queue.in_flight() > 0 {
            if let Some(completion) = queue.complete() {
                all.push(completion);
            } else if let Some(fd) = queue.completion_fd() {
                poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
            }
        }
        all.sort_by_key(|completion| completion.token);
        all
    }

    /// What every queue must do: many requests at a time, each answered once, with the right content.
    fn exercise(path: &Path, queue: &mut dyn IoQueue) {
        let ram = Arc::new(Ram::new(4 * SIZE).unwrap());
        let request = |token: u64, kind, offset, gpa, len: u32| {
            let mut buffers = Buffers::guest(ram.clone());
            // In two stretches, so that lists are passed on as such.
            buffers.push(gpa, len / 2).unwrap();
            buffers.push(gpa + u64::from(len / 2), len - len / 2).unwrap();
            Request { token, kind, offset, buffers }
        };
        let blocks = SIZE / BLOCK;
        for block in 0..blocks {
            ram.guest().write_slice(&[block as u8 + 1; BLOCK as usize], GuestAddress(block * BLOCK)).unwrap();
            queue.submit(request(
                block,
                RequestKind::Write(Durability::AtFlush),
                block * BLOCK,
                block * BLOCK,
                BLOCK as u32,
            ));
        }
        queue.submit(Request {
            token: blocks,
            kind: RequestKind::Flush,
            offset: 0,
            buffers: Buffers::guest(ram.clone()),
        });
        let done = wait(queue);
        assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
        assert_eq!(done.iter().map(|c| c.token).collect::<Vec<_>>(), (0..=blocks).collect::<Vec<_>>());
        for round in 0..2 {
            // Cold the first time, warm the second.
            if round == 0 {
                forget(path);
            }
            for block in 0..blocks {
                queue.submit(request(
                    block,
                    RequestKind::Read,
                    block * BLOCK,
                    2 * SIZE + block * BLOCK,
                    BLOCK as u32,
                ));
            }
            queue.submit(request(blocks, RequestKind::Read, SIZE - 512, 0, 1024));
            queue.submit(request(blocks + 1, RequestKind::Discard(BLOCK), u64::MAX, 0, 0));
            queue.submit(Request {
                token: blocks + 2,
                kind: RequestKind::Flush,
                offset: 0,
                buffers: Buffers::guest(ram.clone()),
            });
            let done = wait(queue);
            for completion in done {
                let kind = completion.result.as_ref().err().map(|error| error.kind());
                match completion.token {
                    token if token == blocks || token == blocks + 1 => {
                        assert_eq!(kind, Some(ErrorKind::OutOfRange));
                    }
                    token => {
                        assert_eq!(kind, None);
                        let mut bytes = [0; BLOCK as usize];
                        if token < blocks {
                            ram.guest()
                                .read_slice(&mut bytes, GuestAddress(2 * SIZE + token * BLOCK))
                                .unwrap();
                            assert_eq!(
                                bytes,
                                [token as u8 + 1; BLOCK as usize],
                                "round {round}, block {token}"
                            );
                        }
                    }
                }
            }
            ram.guest().write_slice(&vec![0; SIZE as usize], GuestAddress(2 * SIZE)).unwrap();
        }
    }

    #[test]
    fn queues_of_all_kinds_answer_each_request_once_with_what_is_there() {
        for format in [crate::Format::Raw, crate::Format::Qcow2] {
            let (path, disk) = image(&format!("pool-{format}"), format);
            exercise(&path, &mut PoolQueue::new(disk.clone(), 512).unwrap());
            exercise(&path, &mut BlockingQueue::new(disk, 512));
            std::fs::remove_file(path).unwrap();
        }
        // With rings, where this host has them; the second queue finds none left.
        let (path, disk) = image("ring", crate::Format::Raw);
        disk.prepare_queues(1);
        let mut first = disk.clone().io_queue(512);
        exercise(&path, &mut *disk.clone().io_queue(512));
        exercise(&path, &mut *first);
        drop(first);
        // The ring that was given back.
        exercise(&path, &mut *disk.io_queue(512));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_queue_that_is_dropped_waits_for_what_it_was_asked() {
        let (path, disk) = image("drop", crate::Format::Raw);
        disk.prepare_queues(1);
        let ram = Arc::new(Ram::new(SIZE).unwrap());
        for mut queue in [disk.clone().io_queue(64), Box::new(PoolQueue::new(disk.clone(), 64).unwrap())] {
            forget(&path);
            for block in 0..32 {
                let mut buffers = Buffers::guest(ram.clone());
                buffers.push(block * BLOCK, BLOCK as u32).unwrap();
                queue.submit(Request {
                    token: block,
                    kind: RequestKind::Read,
                    offset: block * BLOCK,
                    buffers,
                });
            }
            queue.kick();
        }
        assert_eq!(Arc::strong_count(&ram), 1, "nothing moves to the guest's memory any more");
        std::fs::remove_file(path).unwrap();
    }
}
