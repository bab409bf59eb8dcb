//! A virtqueue from the driver's side (virtio 1.2, §2.7.13, §2.7.14).

use crate::queue::Layout;
use crate::spec::desc;
use memory::{Bytes, GuestAddress, Ram};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use vm_memory::ByteValued;

/// Where buffers of a test may begin: a multiple of this keeps them apart.
pub const PAGE: u64 = 4096;

/// A buffer that a driver offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The device reads it: address and length.
    Out(u64, u32),
    /// The device writes it: address and length.
    In(u64, u32),
}

/// A queue as its driver sees it.
pub struct DriverRing {
    ram: Arc<Ram>,
    index: u16,
    layout: Layout,
    event_idx: bool,
    next_available: u16,
    last_used: u16,
    /// Descriptors that are not in use.
    free: Vec<u16>,
    /// The descriptors of each chain in use, by its head.
    chains: Vec<Vec<u16>>,
}

impl DriverRing {
    /// Lays out an empty queue of `size` descriptors from `base` on (16 pages at most, for 1024).
    pub fn new(ram: Arc<Ram>, index: u16, size: u16, base: u64, event_idx: bool) -> DriverRing {
        let available = base + 16 * size as u64;
        let used = (available + 6 + 2 * size as u64).next_multiple_of(4);
        let layout = Layout { size, descriptors: base, available, used };
        let end = used + 6 + 8 * size as u64;
        ram.guest()
            .write_slice(&vec![0; (end - base) as usize], GuestAddress(base))
            .expect("room for a ring");
        DriverRing {
            ram,
            index,
            layout,
            event_idx,
            next_available: 0,
            last_used: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); size as usize],
        }
    }

    /// Where it is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many descriptors are free.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    fn write<T: ByteValued>(&self, value: T, at: u64) {
        self.ram.guest().write_obj(value, GuestAddress(at)).expect("rings are in RAM");
    }

    fn read<T: ByteValued>(&self, at: u64) -> T {
        self.ram.guest().read_obj(GuestAddress(at)).expect("rings are in RAM")
    }

    /// Writes a descriptor into the table of the queue or, at another base, an indirect one.
    pub fn write_descriptor(&self, table: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * index as u64;
        self.write(gpa, at);
        self.write(len, at + 8);
        self.write(flags, at + 12);
        self.write(next, at + 14);
    }

    /// Makes a chain of `buffers` available; returns its head. The device is not notified.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        assert!(!buffers.is_empty() && buffers.len() <= self.free.len(), "free descriptors");
        let taken: Vec<u16> = buffers.iter().map(|_| self.free.pop().expect("counted above")).collect();
        for (position, (buffer, index)) in buffers.iter().zip(&taken).enumerate() {
            let (gpa, len, mut flags) = parts(*buffer);
            let next = taken.get(position + 1).copied();
            flags |= if next.is_some() { desc::NEXT } else { 0 };
            self.write_descriptor(self.layout.descriptors, *index, gpa, len, flags, next.unwrap_or(0));
        }
        let head = taken[0];
        self.chains[head as usize] = taken;
        self.publish(head);
        head
    }

    /// Like [`DriverRing::add`], by an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (index, buffer) in buffers.iter().enumerate() {
            let (gpa, len, mut flags) = parts(*buffer);
            let last = index + 1 == buffers.len();
            flags |= if last { 0 } else { desc::NEXT };
            self.write_descriptor(table, index as u16, gpa, len, flags, index as u16 + 1);
        }
        let head = self.free.pop().expect("a free descriptor");
        let len = 16 * buffers.len() as u32;
        self.write_descriptor(self.layout.descriptors, head, table, len, desc::INDIRECT, 0);
        self.chains[head as usize] = vec![head];
        self.publish(head);
        head
    }

    /// Puts any head into the available ring.
    pub fn publish(&mut self, head: u16) {
        let slot = self.next_available % self.layout.size;
        self.write(head, self.layout.available + 4 + 2 * slot as u64);
        self.next_available = self.next_available.wrapping_add(1);
        self.publish_index(self.next_available);
    }

    /// Sets the available index to anything.
    pub fn publish_index(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.write(index, self.layout.available + 2);
        fence(Ordering::SeqCst);
    }

    /// Whether the device wants to be notified of what was added since `before`, the available index
    /// then.
    pub fn wants_notification(&self, before: u16) -> bool {
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event: u16 = self.read(self.layout.used + 4 + 8 * self.layout.size as u64);
            let (new, old) = (self.next_available, before);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.read::<u16>(self.layout.used) & 1 == 0
        }
    }

    /// The available index.
    pub fn available_index(&self) -> u16 {
        self.next_available
    }

    /// Whether the device is to interrupt for the next used chain.
    pub fn enable_interrupts(&self, enable: bool) {
        if self.event_idx {
            // An index just passed is the furthest away.
            let event = if enable { self.last_used } else { self.last_used.wrapping_sub(1) };
            self.write(event, self.layout.available + 4 + 2 * self.layout.size as u64);
        } else {
            self.write(!enable as u16, self.layout.available);
        }
        fence(Ordering::SeqCst);
    }

    /// Takes a chain that the device has used: its head and the number of bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.read(self.layout.used + 2);
        fence(Ordering::SeqCst);
        if index == self.last_used {
            return None;
        }
        let at = self.layout.used + 4 + 8 * (self.last_used % self.layout.size) as u64;
        let (head, len): (u32, u32) = (self.read(at), self.read(at + 4));
        assert!(head < self.layout.size as u32, "the device used a chain that cannot be");
        self.last_used = self.last_used.wrapping_add(1);
        let taken = std::mem::take(&mut self.chains[head as usize]);
        self.free.extend(taken);
        Some((head as u16, len))
    }
}

fn parts(buffer: Buffer) -> (u64, u32, u16) {
    match buffer {
        Buffer::Out(gpa, len) => (gpa, len, 0),
        Buffer::In(gpa, len) => (gpa, len, desc::WRITE),
    }
}
