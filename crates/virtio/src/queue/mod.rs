//! A virtqueue as a device uses it (virtio 1.2, §2.6 and §2.7).
//!
//! The rings themselves are walked by the `virtio-queue` crate; this adds what a device model needs
//! around them: chains checked as a whole, interrupts batched and suppressed as the driver asks, and one
//! way out when the rings make no sense. Everything in the rings is the guest's and may change at any
//! time; all loops are bounded by the queue size, whatever it says.

mod chain;

pub use chain::{CHAIN_LEN_MAX, Chain, Span};

use crate::{Interrupt, Kick};
use memory::{GuestMemory, Ram};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (§2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Where the driver has put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// How far a queue has come: what is saved of it beyond its layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The next entry of the available ring to be taken.
    pub next_available: u16,
    /// The next entry of the used ring to be filled.
    pub next_used: u16,
    /// The rings made no sense: the queue stands still until the device is reset.
    pub broken: bool,
}

/// What the driver did wrong with a queue. It is answered with `DEVICE_NEEDS_RESET` (§2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// Part of the rings is not RAM, or they are not aligned or sized as required.
    BadLayout,
    /// The available index is further ahead than the queue has entries.
    BadIndex,
    /// A chain with no valid descriptor, one that loops or is too long, or a wrong indirect table.
    BadChain,
    /// A device-readable descriptor after a device-writable one (§2.7.4.2).
    BadOrder,
    /// A buffer that is not RAM.
    BadBuffer,
    /// A chain that the device cannot answer: it lacks what this device's requests need.
    BadRequest,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingError::BadLayout => "its rings are not in RAM",
            RingError::BadIndex => "its available index is too far ahead",
            RingError::BadChain => "a descriptor chain is malformed",
            RingError::BadOrder => "a readable descriptor follows a writable one",
            RingError::BadBuffer => "a buffer is not in RAM",
            RingError::BadRequest => "a request has no room for its answer",
        })
    }
}

/// One virtqueue in use, owned by the worker that serves it.
pub struct Queue {
    ring: Ring,
    index: u16,
    broken: bool,
    ram: Arc<Ram>,
    kick: Arc<Kick>,
    interrupt: Arc<dyn Interrupt>,
    /// The used index up to which the driver has been considered for an interrupt.
    signalled: u16,
}

impl Queue {
    /// Puts a queue to use. One whose layout cannot be is broken at once.
    pub fn new(
        index: u16,
        layout: Layout,
        position: Position,
        event_idx: bool,
        ram: Arc<Ram>,
        kick: Arc<Kick>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Queue {
        let built = build_ring(layout, position, event_idx, ram.guest());
        let bad = built.is_none();
        let ring = built.unwrap_or_default();
        let (broken, signalled) = (position.broken, position.next_used);
        let mut queue = Queue { ring, index, broken, ram, kick, interrupt, signalled };
        if bad && !queue.broken {
            queue.fail(RingError::BadLayout);
        }
        queue
    }

    /// The queue's number within its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The memory that its chains lie in.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The event by which the driver says that there is something in the available ring.
    pub fn kick(&self) -> &Kick {
        &self.kick
    }

    /// The same event, to be given by others, too.
    pub(crate) fn kick_handle(&self) -> Arc<Kick> {
        self.kick.clone()
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether the queue stands still because its rings made no sense.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// How far it has come.
    pub fn position(&self) -> Position {
        Position {
            next_available: self.ring.next_avail(),
            next_used: self.ring.next_used(),
            broken: self.broken,
        }
    }

    /// Declares the queue broken: it gives no more chains, and the driver is told that the device needs
    /// a reset.
    pub fn fail(&mut self, error: RingError) {
        if !self.broken {
            self.broken = true;
            self.interrupt.needs_reset(self.index, error);
        }
    }

    /// Takes the next chain from the available ring into `chain`; false when there is none.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        if self.broken {
            return false;
        }
        let popped = match self.ring.iter(self.ram.guest()) {
            Ok(mut available) => match available.next() {
                Some(raw) => chain.load(raw),
                None => return false,
            },
            Err(_) => Err(RingError::BadIndex),
        };
        match popped {
            Ok(()) => true,
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    /// Puts back the chain that was popped last, as if it had not been. Only when nothing was popped or
    /// used since.
    pub fn unpop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Whether the available ring has something; a cheap look.
    pub fn has_available(&self) -> bool {
        !self.broken
            && self
                .ring
                .avail_idx(self.ram.guest(), Ordering::Acquire)
                .is_ok_and(|index| index.0 != self.ring.next_avail())
    }

    /// Returns the chain that begins at `head` to the driver, with `written` bytes of its writable part
    /// filled from the beginning on. The driver may not hear of it before [`Queue::signal`].
    pub fn push(&mut self, head: u16, written: u32) {
        if !self.broken && self.ring.add_used(self.ram.guest(), head, written).is_err() {
            self.fail(RingError::BadLayout);
        }
    }

    /// Returns several chains, each with its number of bytes written: the driver sees all of them or
    /// none (§5.1.6.4: a frame in merged receive buffers).
    pub fn push_all(&mut self, used: &[(u16, u32)]) {
        let Some((last, first)) = used.split_last() else { return };
        if self.broken {
            return;
        }
        // The entries before the last are written without moving the index, which the last one then
        // moves past all of them.
        for (head, written) in first {
            let at = self.ring.used_ring() + 4 + (self.ring.next_used() % self.ring.size()) as u64 * 8;
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&(*head as u32).to_le_bytes());
            entry[4..].copy_from_slice(&written.to_le_bytes());
            if self.ram.guest().write_slice(&entry, GuestAddress(at)).is_err() {
                return self.fail(RingError::BadLayout);
            }
            self.ring.set_next_used(self.ring.next_used().wrapping_add(1));
        }
        self.push(last.0, last.1);
    }

    /// Interrupts the driver if it wants to know of what was pushed since the last call. Once per batch.
    pub fn signal(&mut self) {
        let (old, new) = (self.signalled, self.ring.next_used());
        if old == new || self.broken {
            return;
        }
        self.signalled = new;
        // The used index before what the driver wants; the driver does it the other way round, so that
        // one of the two notices (§2.7.7.2, §2.7.10).
        fence(Ordering::SeqCst);
        let available = self.ring.avail_ring();
        let load = |at| self.ram.guest().load::<u16>(GuestAddress(at), Ordering::Relaxed).map(u16::from_le);
        let wanted = if self.ring.event_idx_enabled() {
            // "Interrupt when the index moves past used_event": did it, between the old and the new?
            load(available + 4 + 2 * self.ring.size() as u64)
                .map(|event| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            load(available).map(|flags| flags & NO_INTERRUPT == 0)
        };
        match wanted {
            Ok(true) => self.interrupt.queue_used(self.index),
            Ok(false) => {}
            Err(_) => self.fail(RingError::BadLayout),
        }
    }

    /// Asks the driver to notify when it adds something; returns whether something is there already
    /// (then the request may be moot, and the caller goes on working).
    pub fn arm(&mut self) -> bool {
        if self.broken {
            return false;
        }
        match self.ring.enable_notification(self.ram.guest()) {
            Ok(more) => more,
            Err(_) => {
                self.fail(RingError::BadLayout);
                false
            }
        }
    }

    /// The available index up to which chains were popped.
    pub fn next_available(&self) -> u16 {
        self.ring.next_avail()
    }

    /// Whether the driver has added something beyond available index `seen`.
    pub fn has_beyond(&self, seen: u16) -> bool {
        let index = self.ring.avail_idx(self.ram.guest(), Ordering::Acquire);
        !self.broken && index.is_ok_and(|index| index.0 != seen)
    }

    /// Like [`Queue::arm`], for a caller that has seen the available ring up to index `seen` and put
    /// back chains since they were too few: asks to be notified of more than those.
    pub fn arm_beyond(&mut self, seen: u16) -> bool {
        if self.broken {
            return false;
        }
        if !self.ring.event_idx_enabled() {
            return self.arm() && self.has_beyond(seen);
        }
        // `avail_event` follows the used ring's entries (§2.7.10).
        let at = self.ring.used_ring() + 4 + 8 * self.ring.size() as u64;
        if self.ram.guest().store(seen.to_le(), GuestAddress(at), Ordering::Relaxed).is_err() {
            self.fail(RingError::BadLayout);
        }
        // First the wish, then the look, as in `signal`.
        fence(Ordering::SeqCst);
        self.has_beyond(seen)
    }

    /// Tells the driver that it need not notify for now.
    pub fn disarm(&mut self) {
        if !self.broken && self.ring.disable_notification(self.ram.guest()).is_err() {
            self.fail(RingError::BadLayout);
        }
    }
}

fn build_ring(layout: Layout, position: Position, event_idx: bool, guest: &GuestMemory) -> Option<Ring> {
    let mut ring = Ring::new(layout.size).ok()?;
    ring.try_set_desc_table_address(GuestAddress(layout.descriptors)).ok()?;
    ring.try_set_avail_ring_address(GuestAddress(layout.available)).ok()?;
    ring.try_set_used_ring_address(GuestAddress(layout.used)).ok()?;
    ring.set_next_avail(position.next_available);
    ring.set_next_used(position.next_used);
    ring.set_event_idx(event_idx);
    ring.set_ready(true);
    ring.is_valid(guest).then_some(ring)
}

#[cfg(test)]
mod tests;
