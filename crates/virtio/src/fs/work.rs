//! Serving the queues of a file system device.

use super::root::{self, Outcome};
use super::spec::queue;
use super::{Shared, Table};
use crate::queue::{Chain, Queue};
use crate::worker::{Progress, Wait, Work};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use share::fuse::{
    IN_HEADER_LEN, InHeader, NodeId, OUT_HEADER_LEN, opcode, parse_answer, refusal, second_node_at,
    set_answer_unique,
};
use share::{MESSAGE_MAX, Received, Sent};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests that are being answered at a time.
const OUTSTANDING_MAX: usize = 128;
/// How long servers have to finish what they were asked when the machine is to stand still.
const DRAIN: Duration = Duration::from_secs(5);

/// How often it looks for servers that are gone.
const RETRY: Duration = Duration::from_millis(250);

const EIO: i32 = 5;
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;
const ESTALE: i32 = 116;

type Queues = [Option<Queue>; queue::COUNT];

/// The worker of a file system device.
pub struct FsWork {
    queues: Queues,
    shared: Arc<Shared>,
    chain: Chain,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// The share whose server is behind: nothing is asked until it has caught up.
    behind: Option<u32>,
    /// Whether all shares are plugged in.
    is_whole: bool,
    /// The removals of shares that this worker has taken note of.
    removals: u64,
    message: Vec<u8>,
    answer: Vec<u8>,
}

/// A place for a request that is being answered.
#[derive(Default)]
struct Slot {
    asked: Option<Asked>,
    /// Counts its uses, so that a late answer to an earlier one is known.
    uses: u32,
    /// To be used again.
    chain: Chain,
}

/// A request that is being answered; its chain is the slot's.
#[derive(Clone, Copy)]
struct Asked {
    queue: usize,
    unique: u64,
    share: u32,
}

/// What became of a request.
enum Taken {
    /// It is answered, or on its way.
    Yes,
    /// Its share's server is behind.
    Behind(u32),
}

impl FsWork {
    pub(super) fn new(queues: Queues, shared: Arc<Shared>) -> FsWork {
        let removals = shared.table().removals;
        FsWork {
            queues,
            shared,
            chain: Chain::new(),
            slots: (0..OUTSTANDING_MAX).map(|_| Slot::default()).collect(),
            free: (0..OUTSTANDING_MAX).rev().collect(),
            behind: None,
            is_whole: true,
            removals,
            message: Vec::with_capacity(MESSAGE_MAX),
            answer: vec![0; MESSAGE_MAX],
        }
    }

    pub(super) fn into_queues(self) -> impl Iterator<Item = Queue> {
        self.queues.into_iter().flatten()
    }

    /// Takes the answers that have come.
    fn take_answers(&mut self, table: &mut Table) -> bool {
        let mut did = false;
        if table.removals != self.removals {
            self.removals = table.removals;
            let left: Vec<u32> = table.shares.iter().map(|share| share.id).collect();
            did |= self.fail(EIO, |asked| !left.contains(&asked.share));
        }
        for index in 0..table.shares.len() {
            let share = &mut table.shares[index];
            for _ in 0..OUTSTANDING_MAX {
                self.answer.resize(MESSAGE_MAX, 0);
                match share.link.receive(&mut self.answer) {
                    Received::Message(len) => {
                        did = true;
                        let id = share.id;
                        self.answered(id, len);
                    }
                    Received::Nothing => break,
                    Received::Gone => {
                        let id = share.id;
                        did |= self.fail(EIO, |asked| asked.share == id);
                        break;
                    }
                }
            }
        }
        did
    }

    /// Passes an answer of a share's server on to the guest.
    fn answered(&mut self, share: u32, len: usize) {
        let Some(number) = parse_answer(&self.answer[..len]) else { return };
        let (index, uses) = (number as u32 as usize, (number >> 32) as u32);
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.uses == uses) else { return };
        let Some(asked) = slot.asked.filter(|asked| asked.share == share) else { return };
        slot.asked = None;
        self.free.push(index);
        set_answer_unique(&mut self.answer[..len], asked.unique);
        let slot = &self.slots[index];
        reply(&mut self.queues[asked.queue], &slot.chain, asked.unique, &self.answer[..len]);
    }

    /// Answers those that have no answer to come; whether there were any.
    fn fail(&mut self, errno: i32, which: impl Fn(&Asked) -> bool) -> bool {
        let mut did = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(asked) = slot.asked.filter(&which) {
                slot.asked = None;
                self.free.push(index);
                let message = refusal(asked.unique, errno);
                reply(&mut self.queues[asked.queue], &slot.chain, asked.unique, &message);
                did = true;
            }
        }
        did
    }

    /// Takes requests of a queue, a queue's worth at most, as far as there is room for them.
    fn take_requests(&mut self, table: &mut Table, index: usize) -> Progress {
        let Some(queue) = &mut self.queues[index] else { return Progress::Idle };
        let mut batch = queue.size();
        queue.disarm();
        while batch > 0 && self.behind.is_none() && !self.free.is_empty() {
            let Some(queue) = &mut self.queues[index] else { break };
            if !queue.pop(&mut self.chain) {
                break;
            }
            batch -= 1;
            if let Taken::Behind(share) = self.take_request(table, index) {
                if let Some(queue) = &mut self.queues[index] {
                    queue.unpop();
                }
                self.behind = Some(share);
                if let Some(share) = table.share(share) {
                    share.follow(&self.shared.epoll, true);
                }
            }
        }
        let Some(queue) = &mut self.queues[index] else { return Progress::Idle };
        if batch == 0 { Progress::More } else { Progress::done(batch < queue.size()) }
    }

    /// Answers the request in `self.chain`, or passes it on.
    fn take_request(&mut self, table: &mut Table, index: usize) -> Taken {
        let Some(queue) = &mut self.queues[index] else { return Taken::Yes };
        let len = self.chain.readable_len() as usize;
        self.message.resize(len.min(MESSAGE_MAX), 0);
        if let Err(error) = self.chain.read_at(queue.ram(), 0, &mut self.message) {
            queue.fail(error);
            return Taken::Yes;
        }
        let header = InHeader::parse(&self.message).filter(|_| len <= MESSAGE_MAX);
        let Some(header) = header else {
            // Too short to say what it is, too long, or of another length than it says.
            let unique = self.message.get(InHeader::UNIQUE_AT..InHeader::NODE_AT);
            let unique = unique.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
            return self.refuse(index, unique, EINVAL);
        };
        let node = NodeId::from_raw(header.node);
        if header.opcode == opcode::BATCH_FORGET {
            // Nodes of any share; a server passes over those of others.
            for share in &mut table.shares {
                share.link.send(&self.message);
            }
            return self.done_silently(index);
        }
        if let Some(at) = second_node_at(header.opcode) {
            let other = self.message.get(IN_HEADER_LEN + at..).and_then(|rest| rest.first_chunk::<8>());
            let Some(other) = other else { return self.refuse(index, header.unique, EINVAL) };
            if NodeId::from_raw(u64::from_le_bytes(*other)).share != node.share {
                return self.refuse(index, header.unique, EXDEV);
            }
        }
        if node.share != 0 && !matches!(header.opcode, opcode::INIT | opcode::DESTROY) {
            return self.pass_on(table, index, &header, node.share);
        }
        if header.is_silent() {
            return self.done_silently(index);
        }
        match root::answer(&header, &self.message, table, &mut self.answer) {
            Outcome::Answered => {
                reply(&mut self.queues[index], &self.chain, header.unique, &self.answer);
                Taken::Yes
            }
            Outcome::Share(share) => {
                // "The folder itself": its server answers as to any name.
                let root = NodeId::root(share).raw();
                self.message.truncate(IN_HEADER_LEN);
                self.message.extend_from_slice(b".\0");
                let len = self.message.len() as u32;
                self.message[..4].copy_from_slice(&len.to_le_bytes());
                self.message[InHeader::NODE_AT..][..8].copy_from_slice(&root.to_le_bytes());
                self.pass_on(table, index, &header, share)
            }
        }
    }

    /// Asks the server of a share.
    fn pass_on(&mut self, table: &mut Table, index: usize, header: &InHeader, id: u32) -> Taken {
        let Some(share) = table.share(id) else {
            return match header.is_silent() {
                true => self.done_silently(index),
                false => self.refuse(index, header.unique, ESTALE),
            };
        };
        let Some(place) = self.free.last().copied() else { return Taken::Behind(id) };
        let slot = &mut self.slots[place];
        let uses = slot.uses.wrapping_add(1);
        let number = u64::from(uses) << 32 | place as u64;
        self.message[InHeader::UNIQUE_AT..][..8].copy_from_slice(&number.to_le_bytes());
        let sent =
            if share.plug_in(&self.shared.epoll) { share.link.send(&self.message) } else { Sent::Gone };
        match (sent, header.is_silent()) {
            (Sent::Full, _) => Taken::Behind(id),
            // A server that is gone has forgotten everything anyway.
            (_, true) => self.done_silently(index),
            (Sent::Gone, false) => {
                self.fail(EIO, |asked| asked.share == id);
                self.refuse(index, header.unique, EIO)
            }
            (Sent::Yes, false) => {
                self.free.pop();
                slot.uses = uses;
                slot.asked = Some(Asked { queue: index, unique: header.unique, share: id });
                std::mem::swap(&mut slot.chain, &mut self.chain);
                Taken::Yes
            }
        }
    }

    fn refuse(&mut self, index: usize, unique: u64, errno: i32) -> Taken {
        reply(&mut self.queues[index], &self.chain, unique, &refusal(unique, errno));
        Taken::Yes
    }

    fn done_silently(&mut self, index: usize) -> Taken {
        if let Some(queue) = &mut self.queues[index] {
            queue.push(self.chain.head(), 0);
        }
        Taken::Yes
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether a server has answered, as far as anybody is asked anything.
    fn has_answers(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !self.is_idle()
            && poll(&mut [PollFd::new(&*self.shared, PollFlags::IN)], Some(&now)).is_ok_and(|n| n > 0)
    }
}

/// Gives the guest an answer. One that it left no room for becomes a refusal, and one that not even that fits in is
/// left out.
fn reply(queue: &mut Option<Queue>, chain: &Chain, unique: u64, message: &[u8]) {
    let Some(queue) = queue else { return };
    let room = chain.writable_len() as usize;
    let too_long = refusal(unique, EIO);
    let message = if message.len() <= room { message } else { &too_long[..] };
    let message = if room < OUT_HEADER_LEN { &[] } else { message };
    match chain.write_at(queue.ram(), 0, message) {
        Ok(len) => queue.push(chain.head(), len as u32),
        Err(error) => queue.fail(error),
    }
}

impl Work for FsWork {
    fn work(&mut self) -> Progress {
        let shared = self.shared.clone();
        let mut table = shared.table();
        if let Some(share) = self.behind.take()
            && let Some(share) = table.share(share)
        {
            share.follow(&shared.epoll, false);
        }
        let answers = Progress::done(self.take_answers(&mut table));
        self.is_whole = table.plug_in_all();
        let urgent = self.take_requests(&mut table, queue::HIPRIO);
        let requests = self.take_requests(&mut table, queue::REQUEST);
        self.queues.iter_mut().flatten().for_each(Queue::signal);
        answers.and(urgent).and(requests)
    }

    fn is_pending(&self) -> bool {
        let takes_requests = self.behind.is_none() && !self.free.is_empty();
        takes_requests && self.queues.iter().flatten().any(Queue::has_available) || self.has_answers()
    }

    fn arm(&mut self) -> bool {
        if self.behind.is_some() || self.free.is_empty() {
            // An answer, or room, comes first.
            return false;
        }
        let mut pending = false;
        for queue in self.queues.iter_mut().flatten() {
            pending |= queue.arm();
        }
        pending
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in self.queues.iter().flatten() {
            wait.kick(queue.kick());
        }
        wait.readable(self.shared.as_fd());
        if !self.is_whole {
            wait.at_most(RETRY);
        }
    }

    fn drain(&mut self) {
        let shared = self.shared.clone();
        let deadline = Instant::now() + DRAIN;
        while !self.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&*shared, PollFlags::IN)], Some(&wait));
            self.take_answers(&mut shared.table());
        }
        // A file system of the host that hangs must not hold up a pause.
        self.fail(EIO, |_| true);
        self.queues.iter_mut().flatten().for_each(Queue::signal);
    }
}
