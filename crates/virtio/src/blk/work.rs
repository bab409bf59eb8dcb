//! Serving one queue of a block device.

use super::CachePolicy;
use super::request::{Request, SEGMENTS_MAX, parse};
use super::spec::{HEADER_LEN, ID_LEN, S_IOERR, S_OK, S_UNSUPP};
use crate::queue::{Chain, Queue, RingError, Span};
use crate::worker::{Progress, Wait, Work};
use device::limit::Limiter;
use disk::{Buffers, Completion, Disk, IoQueue, Request as DiskRequest, RequestKind};
use memory::{Bytes, GuestAddress};
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A driver that waits for its requests hears of the first of a batch no later than this after it is
/// done, though others are still being worked at.
const SIGNAL_AFTER: Duration = Duration::from_micros(50);

/// After a flush during which the driver had other requests, so many are made beside those.
const FLUSHES_BESIDE: u32 = 64;

/// The worker of one queue.
pub struct BlkWork {
    queue: Queue,
    io: Box<dyn IoQueue>,
    policy: CachePolicy,
    id: [u8; ID_LEN],
    chain: Chain,
    /// Requests in flight; a disk request's token is an index into this.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Buffer lists to be used again.
    spare: Vec<Buffers<'static>>,
    limiter: Arc<Limiter>,
    /// How many flushes to come are made while other requests go on.
    flushes_beside: u32,
    /// When the first answer was given that the driver has not been interrupted for.
    unsignalled_since: Option<Instant>,
}

/// A request of the driver that is being worked at.
#[derive(Clone, Copy)]
struct Slot {
    head: u16,
    status_gpa: u64,
    written: u32,
    /// Disk requests that are still out for it.
    parts: u32,
    status: u8,
}

impl BlkWork {
    pub(super) fn new(
        queue: Queue,
        disk: &Arc<dyn Disk>,
        policy: CachePolicy,
        id: [u8; ID_LEN],
        limiter: Arc<Limiter>,
    ) -> BlkWork {
        let depth = queue.size() as usize + SEGMENTS_MAX as usize;
        BlkWork {
            queue,
            io: disk.clone().io_queue(depth),
            policy,
            id,
            chain: Chain::new(),
            slots: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            limiter,
            flushes_beside: 0,
            unsignalled_since: None,
        }
    }

    pub(super) fn into_queue(self) -> Queue {
        self.queue
    }

    fn has_room(&self) -> bool {
        self.io.room() >= SEGMENTS_MAX as usize
    }

    /// Whether the next request may begin.
    fn may_begin(&self) -> bool {
        self.has_room() && self.limiter.delay().is_none()
    }

    /// What the request in `self.chain` costs: its data, in whichever direction it goes.
    fn charge(&self) {
        let out = u64::from(self.chain.readable_len().saturating_sub(HEADER_LEN));
        let into = u64::from(self.chain.writable_len().saturating_sub(1));
        self.limiter.charge(1, out + into);
    }

    /// Begins the request in `self.chain`.
    fn begin(&mut self) {
        let request = match parse(&self.chain, self.queue.ram()) {
            Ok(request) => request,
            Err(error) => return self.queue.fail(error),
        };
        let (head, data_len) = (self.chain.head(), self.chain.writable_len() - 1);
        let status = self.chain.writable_part(data_len, 1).next();
        let Some(Span { gpa: status_gpa, .. }) = status else { return };
        let mut slot = Slot { head, status_gpa, written: 1, parts: 0, status: S_OK };
        let durability = self.policy.durability();
        match request {
            Request::Read { offset } => {
                slot.written += data_len;
                match self.buffers(Direction::In) {
                    Some(buffers) => self.submit(slot, RequestKind::Read, offset, buffers),
                    None => self.answer(Slot { status: S_IOERR, ..slot }),
                }
            }
            Request::Write { offset } => match self.buffers(Direction::Out) {
                Some(buffers) => self.submit(slot, RequestKind::Write(durability), offset, buffers),
                None => self.answer(Slot { status: S_IOERR, ..slot }),
            },
            Request::Flush => self.flush(slot),
            Request::GetId => {
                let len = self.id.len().min(data_len as usize);
                match self.chain.write_at(self.queue.ram(), 0, &self.id[..len]) {
                    Ok(_) => slot.written += data_len,
                    Err(_) => slot.status = S_IOERR,
                }
                self.answer(slot);
            }
            Request::Discard(segments) => {
                let parts = segments.iter().map(|s| (s.offset, RequestKind::Discard(s.len)));
                self.submit_all(slot, parts);
            }
            Request::WriteZeroes(segments) => {
                let parts =
                    segments.iter().map(|s| (s.offset, RequestKind::WriteZeroes(s.len, s.unmap, durability)));
                self.submit_all(slot, parts);
            }
            Request::Refuse(status) => self.answer(Slot { status, ..slot }),
        }
    }

    /// The data part of the chain as a list for the disk; `None` when it is not RAM.
    fn buffers(&mut self, direction: Direction) -> Option<Buffers<'static>> {
        let mut buffers = self.no_buffers();
        let mut push = |span: Span| buffers.push(span.gpa, span.len).is_ok();
        let all = match direction {
            Direction::In => {
                let len = self.chain.writable_len() - 1;
                self.chain.writable_part(0, len as usize).all(&mut push)
            }
            Direction::Out => {
                let len = self.chain.readable_len() - HEADER_LEN;
                self.chain.readable_part(HEADER_LEN, len as usize).all(&mut push)
            }
        };
        if all {
            Some(buffers)
        } else {
            self.spare.push(buffers);
            None
        }
    }

    fn no_buffers(&mut self) -> Buffers<'static> {
        match self.spare.pop() {
            Some(mut buffers) => {
                buffers.clear();
                buffers
            }
            None => Buffers::guest(self.queue.ram().clone()),
        }
    }

    fn place(&mut self, slot: Slot) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    fn submit(&mut self, slot: Slot, kind: RequestKind, offset: u64, buffers: Buffers<'static>) {
        let token = self.place(Slot { parts: 1, ..slot }) as u64;
        self.io.submit(DiskRequest { token, kind, offset, buffers });
    }

    /// A flush waits for the disk. Most drivers that flush wait for it, too, and have nothing else for the device: then it
    /// is made here, because two changes of threads cost a good part of what a fast disk takes for it. Where that turns
    /// out wrong, the next ones are made beside other requests.
    fn flush(&mut self, slot: Slot) {
        let buffers = self.no_buffers();
        let is_alone = self.io.in_flight() == 0 && !self.queue.has_available();
        if !is_alone || self.flushes_beside > 0 {
            self.flushes_beside = self.flushes_beside.saturating_sub(1);
            return self.submit(slot, RequestKind::Flush, 0, buffers);
        }
        let token = self.place(Slot { parts: 1, ..slot }) as u64;
        self.io.submit_and_wait(DiskRequest { token, kind: RequestKind::Flush, offset: 0, buffers });
        if self.queue.has_available() {
            self.flushes_beside = FLUSHES_BESIDE;
        }
    }

    fn submit_all(&mut self, slot: Slot, parts: impl ExactSizeIterator<Item = (u64, RequestKind)>) {
        let token = self.place(Slot { parts: parts.len() as u32, ..slot }) as u64;
        for (offset, kind) in parts {
            let buffers = self.no_buffers();
            self.io.submit(DiskRequest { token, kind, offset, buffers });
        }
    }

    /// Answers what the disk has finished; whether there was any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some(Completion { token, result, buffers }) = self.io.complete() {
            any = true;
            self.spare.push(buffers);
            let index = token as usize;
            let slot = &mut self.slots[index];
            slot.parts -= 1;
            if result.is_err() {
                slot.status = S_IOERR;
            }
            if slot.parts == 0 {
                let slot = *slot;
                self.free.push(index);
                self.answer(slot);
            }
        }
        any
    }

    fn answer(&mut self, slot: Slot) {
        debug_assert!(matches!(slot.status, S_OK | S_IOERR | S_UNSUPP));
        if self.queue.ram().guest().write_slice(&[slot.status], GuestAddress(slot.status_gpa)).is_err() {
            return self.queue.fail(RingError::BadBuffer);
        }
        self.queue.push(slot.head, slot.written);
        self.unsignalled_since.get_or_insert_with(Instant::now);
    }

    fn signal(&mut self) {
        if self.unsignalled_since.take().is_some() {
            self.queue.signal();
        }
    }

    fn signal_if_late(&mut self) {
        if self.unsignalled_since.is_some_and(|since| since.elapsed() >= SIGNAL_AFTER) {
            self.signal();
        }
    }
}

enum Direction {
    In,
    Out,
}

impl Work for BlkWork {
    fn work(&mut self) -> Progress {
        let mut did = self.reap();
        let mut batch = self.queue.size();
        self.queue.disarm();
        while batch > 0 && self.may_begin() && self.queue.pop(&mut self.chain) {
            batch -= 1;
            did = true;
            self.charge();
            self.begin();
            self.reap();
            self.signal_if_late();
        }
        self.io.kick();
        self.reap();
        self.signal();
        if batch == 0 && self.is_pending() { Progress::More } else { Progress::done(did) }
    }

    fn is_pending(&self) -> bool {
        self.queue.has_available() && self.may_begin()
    }

    fn arm(&mut self) -> bool {
        // Without room it is the disk that is waited for, and under a limit the time.
        self.may_begin() && self.queue.arm()
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.kick(self.queue.kick());
        if let Some(fd) = self.io.completion_fd() {
            wait.readable(fd);
        }
        if let (true, Some(delay)) = (self.has_room(), self.limiter.delay()) {
            wait.at_most(delay);
        }
    }

    fn drain(&mut self) {
        loop {
            self.reap();
            if self.io.in_flight() == 0 {
                break;
            }
            if let Some(fd) = self.io.completion_fd() {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None);
            }
        }
        self.signal();
    }
}
