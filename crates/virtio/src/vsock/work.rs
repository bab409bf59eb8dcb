//! Serving the queues of a socket device.

use super::muxer::Muxer;
use super::packet::Header;
use super::spec::{EVENT_TRANSPORT_RESET, HEADER_LEN};
use crate::queue::{Chain, Queue, RingError};
use crate::worker::{Progress, Wait, Work};
use std::time::Instant;

/// The most data in one packet, in bytes: what Linux sends at most.
const PACKET_DATA_MAX: usize = 64 << 10;

/// The worker of a socket device.
pub struct VsockWork {
    receive: Option<Queue>,
    transmit: Option<Queue>,
    event: Option<Queue>,
    muxer: Muxer,
    /// The guest is to be told that its connections are gone.
    reset_due: bool,
    chain: Chain,
    /// A header and its data.
    packet: Vec<u8>,
}

/// What a worker is made of and leaves behind.
pub(super) struct Parts {
    pub(super) queues: [Option<Queue>; 3],
    pub(super) muxer: Muxer,
    pub(super) reset_due: bool,
}

impl VsockWork {
    pub(super) fn new(parts: Parts) -> VsockWork {
        let [receive, transmit, event] = parts.queues;
        VsockWork {
            receive,
            transmit,
            event,
            muxer: parts.muxer,
            reset_due: parts.reset_due,
            chain: Chain::new(),
            packet: vec![0; HEADER_LEN + PACKET_DATA_MAX],
        }
    }

    pub(super) fn into_parts(self) -> Parts {
        let queues = [self.receive, self.transmit, self.event];
        Parts { queues, muxer: self.muxer, reset_due: self.reset_due }
    }

    /// Takes what the guest sends, a queue's worth at most.
    fn transmit_all(&mut self) -> Progress {
        let Some(queue) = &mut self.transmit else { return Progress::Idle };
        let mut batch = queue.size();
        queue.disarm();
        while batch > 0 && self.muxer.takes_packets() && queue.pop(&mut self.chain) {
            batch -= 1;
            let mut header = [0; HEADER_LEN];
            let read = self.chain.read_at(queue.ram(), 0, &mut header);
            if read != Ok(HEADER_LEN) {
                queue.fail(read.err().unwrap_or(RingError::BadRequest));
                break;
            }
            let header = Header::from_bytes(&header);
            let (len, has) = (header.len as usize, self.chain.readable_len() as usize - HEADER_LEN);
            if len > has || len > PACKET_DATA_MAX {
                queue.fail(RingError::BadRequest);
                break;
            }
            let data = &mut self.packet[..len];
            if let Err(error) = self.chain.read_at(queue.ram(), HEADER_LEN as u32, data) {
                queue.fail(error);
                break;
            }
            self.muxer.take_packet(&header, data);
            queue.push(self.chain.head(), 0);
        }
        queue.signal();
        match batch {
            0 => Progress::More,
            _ => Progress::done(batch < queue.size()),
        }
    }

    /// Gives the guest what comes for it, a queue's worth at most.
    fn receive_all(&mut self) -> Progress {
        let Some(queue) = &mut self.receive else { return Progress::Idle };
        let mut batch = queue.size();
        while batch > 0 && self.muxer.has_packet() && queue.pop(&mut self.chain) {
            batch -= 1;
            let room = self.chain.writable_len() as usize;
            if room <= HEADER_LEN {
                queue.fail(RingError::BadRequest);
                break;
            }
            let (head, data) = self.packet.split_at_mut(HEADER_LEN);
            let data_max = (room - HEADER_LEN).min(data.len());
            let Some(header) = self.muxer.next_packet(&mut data[..data_max]) else {
                queue.unpop();
                break;
            };
            head.copy_from_slice(&header.to_bytes());
            let len = HEADER_LEN + header.len as usize;
            match self.chain.write_at(queue.ram(), 0, &self.packet[..len]) {
                Ok(_) => queue.push(self.chain.head(), len as u32),
                Err(error) => queue.fail(error),
            }
        }
        queue.signal();
        match batch {
            0 => Progress::More,
            _ => Progress::done(batch < queue.size()),
        }
    }

    fn send_events(&mut self) -> Progress {
        let Some(queue) = &mut self.event else { return Progress::Idle };
        if !self.reset_due || !queue.pop(&mut self.chain) {
            return Progress::Idle;
        }
        self.reset_due = false;
        // struct virtio_vsock_event.
        match self.chain.write_at(queue.ram(), 0, &EVENT_TRANSPORT_RESET.to_le_bytes()) {
            Ok(len) => queue.push(self.chain.head(), len as u32),
            Err(error) => queue.fail(error),
        }
        queue.signal();
        Progress::Done
    }

    #[cfg(test)]
    pub(super) fn muxer(&self) -> &Muxer {
        &self.muxer
    }
}

impl Work for VsockWork {
    fn work(&mut self) -> Progress {
        let events = self.send_events();
        let sent = self.transmit_all();
        let polled = Progress::done(self.muxer.poll());
        events.and(sent).and(polled).and(self.receive_all())
    }

    fn is_pending(&self) -> bool {
        let has = |queue: &Option<Queue>| queue.as_ref().is_some_and(Queue::has_available);
        self.muxer.takes_packets() && has(&self.transmit)
            || self.muxer.has_packet() && has(&self.receive)
            || self.reset_due && has(&self.event)
    }

    fn arm(&mut self) -> bool {
        let arm = |wanted: bool, queue: &mut Option<Queue>| match queue {
            Some(queue) if wanted => queue.arm(),
            Some(queue) => {
                queue.disarm();
                false
            }
            None => false,
        };
        let transmit = arm(self.muxer.takes_packets(), &mut self.transmit);
        let receive = arm(self.muxer.has_packet(), &mut self.receive);
        let event = arm(self.reset_due, &mut self.event);
        transmit || receive || event
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in [&self.receive, &self.transmit, &self.event].into_iter().flatten() {
            wait.kick(queue.kick());
        }
        wait.readable(self.muxer.fd());
        if let Some(deadline) = self.muxer.deadline() {
            wait.at_most(deadline.saturating_duration_since(Instant::now()));
        }
    }
}
