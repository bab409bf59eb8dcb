//! Serving the queues of a serial port.

use super::line::Line;
use super::{CONTROL_LEN, Control, queue};
use crate::queue::{Chain, Queue};
use crate::worker::{Progress, Wait, Work};

/// How much of a chain is moved at a time, and at most: longer ones are cut.
const PIECE: usize = 4096;
const CHAIN_MAX: u32 = 1 << 20;

type Queues = [Option<Queue>; queue::COUNT];

/// The worker of a serial port.
pub struct SerialWork {
    queues: Queues,
    control: Control,
    line: Line,
    chain: Chain,
    piece: Vec<u8>,
}

impl SerialWork {
    pub(super) fn new(queues: Queues, control: Control, line: Line) -> SerialWork {
        SerialWork { queues, control, line, chain: Chain::new(), piece: vec![0; PIECE] }
    }

    pub(super) fn into_parts(self) -> (Queues, Control, Line) {
        (self.queues, self.control, self.line)
    }

    /// Takes control messages of the driver.
    fn control_out(&mut self) -> Progress {
        let Some(queue) = &mut self.queues[queue::CONTROL_OUT] else { return Progress::Idle };
        let mut batch = queue.size();
        queue.disarm();
        while batch > 0 && queue.pop(&mut self.chain) {
            batch -= 1;
            let mut message = [0; CONTROL_LEN];
            match self.chain.read_at(queue.ram(), 0, &mut message) {
                Ok(CONTROL_LEN) => self.control.take(&message),
                // Too short for a message: no driver sends that.
                Ok(_) => {}
                Err(error) => queue.fail(error),
            }
            queue.push(self.chain.head(), 0);
        }
        queue.signal();
        if batch == 0 { Progress::More } else { Progress::done(batch < queue.size()) }
    }

    /// Gives the driver control messages.
    fn control_in(&mut self) -> Progress {
        let Some(queue) = &mut self.queues[queue::CONTROL_IN] else { return Progress::Idle };
        let mut did = false;
        while self.control.is_waiting() && queue.pop(&mut self.chain) {
            did = true;
            let Some(message) = self.control.next() else { break };
            // A buffer that is too short gets what fits.
            let len = message.len().min(self.chain.writable_len() as usize);
            match self.chain.write_at(queue.ram(), 0, &message[..len]) {
                Ok(_) => queue.push(self.chain.head(), len as u32),
                Err(error) => queue.fail(error),
            }
        }
        queue.signal();
        Progress::done(did)
    }

    /// Takes what the guest writes, a queue's worth at most, as far as the host takes it.
    fn output(&mut self) -> Progress {
        let Some(queue) = &mut self.queues[queue::OUT] else { return Progress::Idle };
        let mut batch = queue.size();
        queue.disarm();
        while batch > 0 && self.line.takes_output() && queue.pop(&mut self.chain) {
            batch -= 1;
            let len = self.chain.readable_len().min(CHAIN_MAX);
            let mut at = 0;
            while at < len {
                let here = ((len - at) as usize).min(PIECE);
                match self.chain.read_at(queue.ram(), at, &mut self.piece[..here]) {
                    Ok(_) => self.line.output(&self.piece[..here]),
                    Err(error) => {
                        queue.fail(error);
                        break;
                    }
                }
                at += here as u32;
            }
            queue.push(self.chain.head(), 0);
        }
        queue.signal();
        if batch == 0 { Progress::More } else { Progress::done(batch < queue.size()) }
    }

    /// Gives the guest what the host has sent.
    fn input(&mut self) -> Progress {
        let Some(queue) = &mut self.queues[queue::IN] else { return Progress::Idle };
        let mut batch = queue.size();
        while batch > 0 && self.line.has_input() && queue.pop(&mut self.chain) {
            batch -= 1;
            let room = (self.chain.writable_len() as usize).min(PIECE);
            let len = self.line.input(&mut self.piece[..room]);
            match self.chain.write_at(queue.ram(), 0, &self.piece[..len]) {
                Ok(_) => queue.push(self.chain.head(), len as u32),
                Err(error) => queue.fail(error),
            }
        }
        queue.signal();
        if batch == 0 { Progress::More } else { Progress::done(batch < queue.size()) }
    }

    /// Whether a queue matters now: the guest need not say when it makes room while nothing waits for it.
    fn matters(&self, index: usize) -> bool {
        match index {
            queue::CONTROL_OUT => true,
            queue::OUT => self.line.takes_output(),
            queue::CONTROL_IN => self.control.is_waiting(),
            queue::IN => self.line.has_input(),
            // The first port is not there.
            _ => false,
        }
    }
}

impl Work for SerialWork {
    fn work(&mut self) -> Progress {
        let control = self.control_out().and(self.control_in());
        let output = self.output();
        let moved = Progress::done(self.line.work());
        control.and(output).and(moved).and(self.input())
    }

    fn is_pending(&self) -> bool {
        let has = |index: usize| self.queues[index].as_ref().is_some_and(Queue::has_available);
        (0..queue::COUNT).any(|index| self.matters(index) && has(index))
    }

    fn arm(&mut self) -> bool {
        let mut pending = false;
        for index in 0..queue::COUNT {
            let matters = self.matters(index);
            match &mut self.queues[index] {
                Some(queue) if matters => pending |= queue.arm(),
                Some(queue) => queue.disarm(),
                None => {}
            }
        }
        pending
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in self.queues.iter().flatten() {
            wait.kick(queue.kick());
        }
        let (readable, writable) = self.line.waits();
        if let Some(fd) = readable {
            wait.readable(fd);
        }
        if let Some(fd) = writable {
            wait.writable(fd);
        }
    }
}
