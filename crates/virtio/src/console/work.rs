//! Serving the queues of a console.

use super::{ConsoleInput, Output, emit};
use crate::queue::{Chain, Queue};
use crate::worker::{Progress, Wait, Work};

/// How much of a chain is moved at a time.
const PIECE: usize = 4096;

/// The worker of a console.
pub struct ConsoleWork {
    receive: Option<Queue>,
    transmit: Option<Queue>,
    input: ConsoleInput,
    output: Output,
    chain: Chain,
    piece: Vec<u8>,
}

impl ConsoleWork {
    pub(super) fn new(
        receive: Option<Queue>,
        transmit: Option<Queue>,
        input: ConsoleInput,
        output: Output,
    ) -> ConsoleWork {
        ConsoleWork { receive, transmit, input, output, chain: Chain::new(), piece: vec![0; PIECE] }
    }

    pub(super) fn into_queues(self) -> impl Iterator<Item = Queue> {
        [self.receive, self.transmit].into_iter().flatten()
    }

    /// Writes out what the guest has written, a queue's worth at most, bounded also in bytes: the guest
    /// may have put the same long buffer into every chain.
    fn transmit_all(&mut self) -> Progress {
        const BYTES_MAX: u64 = 1 << 20;
        let Some(queue) = &mut self.transmit else { return Progress::Idle };
        let (mut batch, mut bytes) = (queue.size(), 0u64);
        queue.disarm();
        while batch > 0 && bytes < BYTES_MAX && queue.pop(&mut self.chain) {
            batch -= 1;
            // A chain too long for any console is cut, not refused.
            let len = (self.chain.readable_len() as u64).min(BYTES_MAX) as u32;
            bytes += len as u64;
            let mut at = 0;
            while at < len {
                let here = ((len - at) as usize).min(PIECE);
                match self.chain.read_at(queue.ram(), at, &mut self.piece[..here]) {
                    Ok(_) => emit(&self.output, &self.piece[..here]),
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
        match queue.has_available() {
            true => Progress::More,
            false => Progress::done(batch < queue.size()),
        }
    }

    /// Gives the guest what was typed.
    fn receive_all(&mut self) -> Progress {
        let Some(queue) = &mut self.receive else { return Progress::Idle };
        let mut batch = queue.size();
        while batch > 0 && !self.input.is_empty() && queue.pop(&mut self.chain) {
            batch -= 1;
            let room = (self.chain.writable_len() as usize).min(PIECE);
            let len = self.input.take(&mut self.piece[..room]);
            match self.chain.write_at(queue.ram(), 0, &self.piece[..len]) {
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

    fn input_waits(&self) -> bool {
        !self.input.is_empty()
    }
}

impl Work for ConsoleWork {
    fn work(&mut self) -> Progress {
        self.transmit_all().and(self.receive_all())
    }

    fn is_pending(&self) -> bool {
        self.transmit.as_ref().is_some_and(Queue::has_available)
            || self.input_waits() && self.receive.as_ref().is_some_and(Queue::has_available)
    }

    fn arm(&mut self) -> bool {
        let transmit = self.transmit.as_mut().is_some_and(Queue::arm);
        let waits = self.input_waits();
        let receive = match &mut self.receive {
            // Only while input waits does it matter that the guest makes room.
            Some(queue) if waits => queue.arm(),
            Some(queue) => {
                queue.disarm();
                false
            }
            None => false,
        };
        transmit || receive
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        for queue in [&self.receive, &self.transmit].into_iter().flatten() {
            wait.kick(queue.kick());
        }
        wait.kick(self.input.kick());
    }
}
