//! A bounded cache of pieces of tables (L2 tables, refcount blocks), with write-back.

use crate::file::HostFile;
use crate::{Error, Operation};
use std::collections::HashMap;

/// Length of a piece, for clusters that are at least so large. A table of 64 KiB is rarely needed whole.
const SLICE_LEN: usize = 4096;

struct Slot {
    at: u64,
    bytes: Box<[u8]>,
    is_dirty: bool,
    /// Counts changes, so that who wrote a copy can tell whether it is still the newest.
    changes: u64,
    /// Was used since the hand last passed.
    is_recent: bool,
}

/// A copy of a dirty slice, to be written.
pub(super) struct Copy {
    pub(super) at: u64,
    pub(super) bytes: Box<[u8]>,
    changes: u64,
}

/// Pieces of tables, by their place in the file. Only clean ones make way for others.
pub(super) struct Cache {
    slice_len: usize,
    capacity: usize,
    slots: Vec<Slot>,
    by_place: HashMap<u64, usize>,
    hand: usize,
    dirty: usize,
}

impl Cache {
    /// A cache of `capacity` bytes for tables of clusters of `cluster_size` bytes.
    pub(super) fn new(cluster_size: u64, capacity: usize) -> Cache {
        let slice_len = SLICE_LEN.min(cluster_size as usize);
        Cache {
            slice_len,
            capacity: (capacity / slice_len).max(16),
            slots: Vec::new(),
            by_place: HashMap::new(),
            hand: 0,
            dirty: 0,
        }
    }

    /// Whether so much is dirty that it should be written before more is changed.
    pub(super) fn is_crowded(&self) -> bool {
        self.dirty > self.capacity / 2
    }

    /// The 64-bit entry at `at` in the file.
    pub(super) fn entry(&mut self, file: &HostFile, at: u64, operation: Operation) -> Result<u64, Error> {
        let (slot, within) = self.load(file, at, operation)?;
        Ok(crate::bytes::be64(&self.slots[slot].bytes, within))
    }

    /// The slice that holds byte `at` of the file, from there on.
    pub(super) fn bytes(&mut self, file: &HostFile, at: u64, operation: Operation) -> Result<&[u8], Error> {
        let (slot, within) = self.load(file, at, operation)?;
        Ok(&self.slots[slot].bytes[within..])
    }

    /// The same, to be changed.
    pub(super) fn bytes_mut(
        &mut self,
        file: &HostFile,
        at: u64,
        operation: Operation,
    ) -> Result<&mut [u8], Error> {
        let (index, within) = self.load(file, at, operation)?;
        let slot = &mut self.slots[index];
        self.dirty += !slot.is_dirty as usize;
        slot.is_dirty = true;
        slot.changes += 1;
        Ok(&mut slot.bytes[within..])
    }

    fn load(&mut self, file: &HostFile, at: u64, operation: Operation) -> Result<(usize, usize), Error> {
        let within = at as usize & (self.slice_len - 1);
        let start = at - within as u64;
        if let Some(&index) = self.by_place.get(&start) {
            self.slots[index].is_recent = true;
            return Ok((index, within));
        }
        let mut bytes = vec![0; self.slice_len].into_boxed_slice();
        file.read(start, &mut bytes, operation)?;
        let slot = Slot { at: start, bytes, is_dirty: false, changes: 0, is_recent: true };
        let index = match self.victim() {
            Some(index) => {
                self.by_place.remove(&self.slots[index].at);
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.by_place.insert(start, index);
        Ok((index, within))
    }

    /// A clean slot to be used anew; `None` while there is room. When all are dirty the cache grows for
    /// a moment: whoever changes tables looks at [`Cache::is_crowded`] first.
    fn victim(&mut self) -> Option<usize> {
        if self.slots.len() < self.capacity {
            return None;
        }
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if !slot.is_dirty && !std::mem::take(&mut slot.is_recent) {
                return Some(self.hand);
            }
        }
        None
    }

    /// Forgets what it has of a table that is no longer one, or that was written past the cache.
    pub(super) fn forget(&mut self, at: u64, len: u64) {
        for start in (at..at + len).step_by(self.slice_len) {
            if let Some(index) = self.by_place.remove(&start) {
                let slot = &mut self.slots[index];
                self.dirty -= slot.is_dirty as usize;
                // No place in the file: never found again, and free to be used.
                (slot.at, slot.is_dirty, slot.is_recent) = (u64::MAX, false, false);
            }
        }
    }

    /// Copies of all that is dirty.
    pub(super) fn copies(&self) -> Vec<Copy> {
        let dirty = self.slots.iter().filter(|slot| slot.is_dirty);
        let mut copies: Vec<_> = dirty
            .map(|slot| Copy { at: slot.at, bytes: slot.bytes.clone(), changes: slot.changes })
            .collect();
        copies.sort_unstable_by_key(|copy| copy.at);
        copies
    }

    /// These copies were written: what has not changed since is clean.
    pub(super) fn written(&mut self, copies: &[Copy]) {
        for copy in copies {
            let Some(&index) = self.by_place.get(&copy.at) else { continue };
            let slot = &mut self.slots[index];
            if slot.is_dirty && slot.changes == copy.changes {
                slot.is_dirty = false;
                self.dirty -= 1;
            }
        }
    }

    /// Writes all that is dirty.
    pub(super) fn write_back(&mut self, file: &HostFile, operation: Operation) -> Result<(), Error> {
        if self.dirty == 0 {
            return Ok(());
        }
        let mut order: Vec<usize> = (0..self.slots.len()).filter(|i| self.slots[*i].is_dirty).collect();
        order.sort_unstable_by_key(|index| self.slots[*index].at);
        for index in order {
            let slot = &mut self.slots[index];
            file.write(slot.at, &slot.bytes, operation)?;
            slot.is_dirty = false;
            self.dirty -= 1;
        }
        Ok(())
    }
}
