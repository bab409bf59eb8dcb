//! Serving the queues of a network card.

use super::Link;
use super::offload::{self, LONG_FRAME_MAX, Wishes};
use super::spec::{HEADER_LEN, HEADER_NUM_BUFFERS};
use crate::queue::{Chain, Queue, RingError};
use crate::worker::{Progress, Wait, Work};
use ::net::Backend;
use device::limit::Limiter;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The shortest frame that is passed on: an Ethernet header.
const FRAME_LEN_MIN: usize = super::ETHERNET_HEADER_LEN;

/// While frames to the guest are held back, the backend is looked after at least this often.
const HELD_MAX: Duration = Duration::from_millis(10);

/// The worker of a network card.
pub struct NetWork {
    receive: Option<Queue>,
    transmit: Option<Queue>,
    backend: Box<dyn Backend>,
    agreed: Agreed,
    link: Link,
    /// For frames from the guest, and to it.
    limiters: [Arc<Limiter>; 2],
    /// A header and the frame that goes to the guest next.
    incoming: Vec<u8>,
    /// The frame in `incoming` has no room in the guest yet.
    waiting: Option<Waiting>,
    outgoing: Vec<u8>,
    /// A frame cut from a long one.
    cut: Vec<u8>,
    chain: Chain,
    /// Chains for one frame, to be used again.
    chains: Vec<Chain>,
    used: Vec<(u16, u32)>,
    frame_size_max: usize,
    /// When the backend wants to be called again.
    deadline: Option<Instant>,
}

/// What the driver and the card have agreed upon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// A frame may go to several buffers.
    pub(super) merge: bool,
    /// The driver may leave checksums to the card.
    pub(super) checksum: bool,
    /// The driver may leave cutting to the card.
    pub(super) cut: bool,
    /// The driver wants to know which checksums are right.
    pub(super) vouch: bool,
}

/// A frame for which the guest offers too little room.
#[derive(Clone, Copy)]
struct Waiting {
    len: usize,
    /// The available index up to which the guest's offer was seen.
    seen: u16,
}

impl NetWork {
    pub(super) fn new(
        receive: Option<Queue>,
        transmit: Option<Queue>,
        backend: Box<dyn Backend>,
        agreed: Agreed,
        link: Link,
        limiters: [Arc<Limiter>; 2],
    ) -> NetWork {
        let frame_size_max = backend.frame_size_max();
        let outgoing_max = if agreed.cut { frame_size_max.max(LONG_FRAME_MAX) } else { frame_size_max };
        NetWork {
            receive,
            transmit,
            backend,
            agreed,
            link,
            limiters,
            incoming: vec![0; HEADER_LEN + frame_size_max],
            waiting: None,
            outgoing: vec![0; outgoing_max],
            cut: Vec::new(),
            chain: Chain::new(),
            chains: Vec::new(),
            used: Vec::new(),
            frame_size_max,
            deadline: None,
        }
    }

    pub(super) fn into_parts(self) -> (Option<Queue>, Option<Queue>, Box<dyn Backend>) {
        (self.receive, self.transmit, self.backend)
    }

    /// Passes on what the guest sends, a queue's worth at most.
    fn transmit_all(&mut self) -> Progress {
        let Some(queue) = &mut self.transmit else { return Progress::Idle };
        let mut batch = queue.size();
        queue.disarm();
        let limiter = &self.limiters[0];
        while batch > 0 && limiter.delay().is_none() && queue.pop(&mut self.chain) {
            batch -= 1;
            // Frames of impossible length are lost, as on a wire.
            let len = (self.chain.readable_len() as usize).saturating_sub(HEADER_LEN);
            limiter.charge(1, len as u64);
            if (FRAME_LEN_MIN..=self.outgoing.len()).contains(&len) && self.link.is_up() {
                let frame = &mut self.outgoing[..len];
                let mut header = [0; HEADER_LEN];
                let read = (self.chain.read_at(queue.ram(), 0, &mut header))
                    .and_then(|_| self.chain.read_at(queue.ram(), HEADER_LEN as u32, frame));
                match read {
                    Ok(_) => {
                        // Without the features the header says nothing.
                        let offloads = self.agreed.checksum || self.agreed.cut;
                        let wishes = if offloads { Wishes::from_bytes(&header) } else { Wishes::default() };
                        let (backend, size_max) = (&mut self.backend, self.frame_size_max);
                        offload::send_as_wished(frame, wishes, size_max, &mut self.cut, |frame| {
                            backend.transmit(frame);
                        });
                    }
                    Err(error) => {
                        queue.fail(error);
                        break;
                    }
                }
            }
            queue.push(self.chain.head(), 0);
        }
        queue.signal();
        match batch {
            0 if queue.has_available() && limiter.delay().is_none() => Progress::More,
            _ => Progress::done(batch < queue.size()),
        }
    }

    /// Gives the guest what comes for it, a queue's worth at most.
    fn receive_all(&mut self) -> Progress {
        let mut batch = match &self.receive {
            Some(queue) if !queue.is_broken() => queue.size(),
            _ => return Progress::Idle,
        };
        let mut did = false;
        while batch > 0 {
            let len = match self.waiting.take() {
                Some(waiting) => waiting.len,
                // Under a limit frames stay where they are.
                None if self.limiters[1].delay().is_some() => break,
                None => match self.backend.receive(&mut self.incoming[HEADER_LEN..]) {
                    Some(len) => len.min(self.incoming.len() - HEADER_LEN),
                    None => break,
                },
            };
            batch -= 1;
            if len < FRAME_LEN_MIN || !self.link.is_up() {
                continue;
            }
            match self.deliver(len) {
                Ok(()) => {
                    self.limiters[1].charge(1, len as u64);
                    did = true;
                }
                Err(seen) => {
                    self.waiting = Some(Waiting { len, seen });
                    break;
                }
            }
        }
        if let Some(queue) = &mut self.receive {
            queue.signal();
        }
        if batch == 0 { Progress::More } else { Progress::done(did) }
    }

    /// Puts the frame of `len` bytes in `incoming` into the guest's buffers, or loses it for good. The
    /// error says that there is too little room yet, up to this available index.
    fn deliver(&mut self, len: usize) -> Result<(), u16> {
        let Some(queue) = &mut self.receive else { return Ok(()) };
        let total = HEADER_LEN + len;
        let chains_max = if self.agreed.merge { queue.size() as usize } else { 1 };
        let (mut count, mut room) = (0, 0);
        while room < total && count < chains_max {
            if count == self.chains.len() {
                self.chains.push(Chain::new());
            }
            if !queue.pop(&mut self.chains[count]) {
                break;
            }
            room += self.chains[count].writable_len() as usize;
            count += 1;
        }
        if queue.is_broken() {
            return Ok(());
        }
        if room < total {
            let seen = queue.next_available();
            (0..count).for_each(|_| queue.unpop());
            // A frame that does not even fit all that the guest can offer never will: it is lost.
            return if count == chains_max { Ok(()) } else { Err(seen) };
        }
        // struct virtio_net_hdr (§5.1.6.4.1).
        self.incoming[..HEADER_LEN].fill(0);
        if self.agreed.vouch {
            self.incoming[0] = offload::vouch(&self.incoming[HEADER_LEN..total]);
        }
        self.incoming[HEADER_NUM_BUFFERS..][..2].copy_from_slice(&(count as u16).to_le_bytes());
        self.used.clear();
        let mut done = 0;
        for chain in &self.chains[..count] {
            let here = (chain.writable_len() as usize).min(total - done);
            let written = chain.write_at(queue.ram(), 0, &self.incoming[done..done + here]);
            if written != Ok(here) {
                queue.fail(RingError::BadBuffer);
                return Ok(());
            }
            self.used.push((chain.head(), here as u32));
            done += here;
        }
        queue.push_all(&self.used);
        Ok(())
    }

    /// Whether a frame waits for room and there is more room than when it began to.
    fn can_deliver(&self) -> bool {
        match (&self.receive, self.waiting) {
            (Some(queue), Some(waiting)) => queue.has_beyond(waiting.seen),
            _ => false,
        }
    }
}

impl Work for NetWork {
    fn work(&mut self) -> Progress {
        let sent = self.transmit_all();
        let again = self.backend.poll();
        self.deadline = again.map(|after| Instant::now() + after.min(Duration::from_secs(3600)));
        let received = self.receive_all();
        sent.and(received)
    }

    fn is_pending(&self) -> bool {
        let may_send = || self.limiters[0].delay().is_none();
        (self.transmit.as_ref().is_some_and(Queue::has_available) && may_send()) || self.can_deliver()
    }

    fn arm(&mut self) -> bool {
        // Under a limit it is the time that is waited for.
        let may_send = self.limiters[0].delay().is_none();
        let transmit = may_send && self.transmit.as_mut().is_some_and(Queue::arm);
        let receive = match (&mut self.receive, self.waiting) {
            (Some(queue), Some(waiting)) => queue.arm_beyond(waiting.seen),
            // The guest need not say when it makes room while nothing waits for it.
            (Some(queue), None) => {
                queue.disarm();
                false
            }
            (None, _) => false,
        };
        transmit || receive
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in [&self.receive, &self.transmit].into_iter().flatten() {
            wait.kick(queue.kick());
        }
        // While a frame waits the backend's others stay where they are, so its descriptor would not let
        // us sleep.
        let receive_delay = self.limiters[1].delay();
        if self.waiting.is_none() && receive_delay.is_none() {
            wait.readable(self.backend.poll_fd());
        }
        for delay in [self.limiters[0].delay(), receive_delay].into_iter().flatten() {
            wait.at_most(delay.min(HELD_MAX));
        }
        if let Some(deadline) = self.deadline {
            wait.at_most(deadline.saturating_duration_since(Instant::now()));
        }
    }
}
