//! A queue on io_uring, for raw files: the kernel waits for storage, and no thread does.
//!
//! A ring can do more than the system calls that a sandbox leaves, and is not seen by it. So rings are made
//! before the sandbox closes ([`Disk::prepare_queues`]), for one file each, and restricted for good to reading
//! that file and making it safe (io_uring_register(2), `IORING_REGISTER_RESTRICTIONS`). Of the three system calls
//! only `io_uring_enter` is needed from then on.
//!
//! What lies in the host's page cache is read on the spot, as in [`PoolQueue`](crate::PoolQueue), and writes end
//! there.

use crate::io_queue::{Completion, IoQueue, Request, RequestKind, perform};
use crate::raw::Raw;
use crate::{Disk, Operation};
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

/// Entries of a ring: as many requests as are given to the kernel at a time.
const ENTRIES: u32 = 256;

/// A ring for one file, at rest.
pub(crate) struct Ring {
    ring: IoUring,
    event: OwnedFd,
}

impl Ring {
    /// Makes a ring that can only read this file and make it safe.
    ///
    /// The ring has an opening of its own. A lock belongs to an opening, and the kernel takes a ring apart some time
    /// after its process has ended: the next user of the disk would find it locked.
    ///
    /// # Errors
    /// When the kernel has no io_uring, does not permit it, or is too old for restrictions; when the file cannot be
    /// opened again.
    pub(crate) fn new(file: &File) -> io::Result<Ring> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let ring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Ring { ring, event })
    }
}

/// A queue of requests to a raw disk.
pub(crate) struct RingQueue {
    disk: Arc<Raw>,
    depth: usize,
    /// `None` only while it is dropped.
    ring: Option<Ring>,
    /// What the kernel has, or gets with the next `kick`; its number is the place here.
    away: Vec<Option<Request>>,
    free: Vec<usize>,
    unsubmitted: usize,
    done: VecDeque<Completion>,
}

impl RingQueue {
    pub(crate) fn new(disk: Arc<Raw>, ring: Ring, depth: usize) -> RingQueue {
        let slots = depth.min(ENTRIES as usize);
        RingQueue {
            disk,
            depth,
            ring: Some(ring),
            away: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            unsubmitted: 0,
            done: VecDeque::new(),
        }
    }

    fn ring(&mut self) -> &mut Ring {
        self.ring.as_mut().expect("there until it is dropped")
    }

    fn away(&self) -> usize {
        self.away.len() - self.free.len()
    }

    /// Gives a request to the kernel, if it takes this kind.
    fn send_away(&mut self, request: Request) {
        const FILE: types::Fixed = types::Fixed(0);
        let len = request.buffers.len() as u64;
        let checked = self.disk.info().check(Operation::Read, request.offset, len);
        let (Ok(()), Some(slot)) = (checked, self.free.last().copied()) else {
            // A range that is not there gets its error; what finds no place is done here.
            return self.done.push_back(perform(&*self.disk, request));
        };
        let entry = match request.kind {
            RequestKind::Read if request.buffers.is_fillable() && !request.buffers.is_empty() => {
                let iovecs = request.buffers.iovecs();
                let number = iovecs.len().min(1024) as u32;
                opcode::Readv::new(FILE, iovecs.as_ptr(), number).offset(request.offset).build()
            }
            RequestKind::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            _ => return self.done.push_back(perform(&*self.disk, request)),
        };
        let entry = entry.user_data(slot as u64);
        self.away[slot] = Some(request);
        // SAFETY: the list of stretches and the memory that it describes belong to the request, which stays in
        // `away`, on the heap, until the kernel has completed it: a queue that is dropped waits for that.
        let pushed = unsafe { self.ring().ring.submission().push(&entry) };
        if pushed.is_ok() {
            self.free.pop();
            self.unsubmitted += 1;
        } else if let Some(request) = self.away[slot].take() {
            self.done.push_back(perform(&*self.disk, request));
        }
    }

    /// Tells the kernel of what was pushed. What it cannot take now it gets the next time.
    fn enter(&mut self) {
        while self.unsubmitted > 0 {
            match self.ring().ring.submit() {
                Ok(number) => self.unsubmitted -= number.min(self.unsubmitted),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // Short of memory. The next completion leads here again; where none will come, time may help.
                Err(_) if self.away() == self.unsubmitted => std::thread::yield_now(),
                Err(_) => break,
            }
        }
    }

    fn collect(&mut self) {
        let _ = rustix::io::read(&self.ring().event, &mut [0; 8]);
        loop {
            let next = self.ring().ring.completion().next();
            let Some(entry) = next else { break };
            let slot = entry.user_data() as usize;
            let Some(request) = self.away.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let completion = self.finish(request, entry.result());
            self.done.push_back(completion);
        }
        self.enter();
    }

    /// Judges what the kernel made of a request.
    fn finish(&self, request: Request, result: i32) -> Completion {
        let is_whole = match request.kind {
            RequestKind::Read => usize::try_from(result) == Ok(request.buffers.len()),
            _ => result == 0,
        };
        // A flush that failed must not be tried again: the second may succeed, though nothing is safe.
        let is_told = is_whole || (request.kind == RequestKind::Flush && result != -libc::EINTR);
        if !is_told {
            // Cut short, interrupted or failed: the plain way does the rest, or finds out what it is.
            return perform(&*self.disk, request);
        }
        let Request { token, kind, buffers, .. } = request;
        if kind == RequestKind::Read {
            buffers.report_filled(0, buffers.len());
        }
        let result = match is_whole {
            true => Ok(()),
            false => Err(self.disk.host_failed(Operation::Flush, io::Error::from_raw_os_error(-result))),
        };
        Completion { token, result, buffers }
    }
}

impl IoQueue for RingQueue {
    fn submit(&mut self, mut request: Request) {
        assert!(self.room() > 0, "the queue is full");
        let now = match request.kind {
            RequestKind::Read => self.disk.read_now(request.offset, &mut request.buffers),
            RequestKind::Flush => None,
            _ => return self.done.push_back(perform(&*self.disk, request)),
        };
        match now {
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

    fn kick(&mut self) {
        self.enter();
    }

    fn complete(&mut self) -> Option<Completion> {
        if self.done.is_empty() && self.away() > 0 {
            self.collect();
        }
        self.done.pop_front()
    }

    fn room(&self) -> usize {
        self.depth - self.in_flight()
    }

    fn in_flight(&self) -> usize {
        self.away() + self.done.len()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(|ring| ring.event.as_fd())
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        self.enter();
        while self.away() > 0 {
            if let Some(fd) = self.completion_fd() {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None);
            }
            self.collect();
        }
        if let Some(ring) = self.ring.take() {
            self.disk.keep_ring(ring);
        }
    }
}
