//! Writing: clusters get places of their own, and what a request leaves of them is filled in.

use super::meta::{Mapping, Meta};
use super::reading::STEP_CLUSTERS;
use super::{Qcow2, spec};
use crate::{Buffers, Disk, Durability, Error, Operation};
use std::sync::PoisonError;

/// So many clusters may wait to become free before a flush is due.
const UNLINKED_MAX: usize = 1 << 16;

impl Qcow2 {
    /// Flushes when too much waits in memory.
    pub(super) fn make_room(&self) -> Result<(), Error> {
        let meta = self.lock();
        let is_due = meta.l2.is_crowded() || meta.refs.is_crowded() || meta.unlinked.len() > UNLINKED_MAX;
        drop(meta);
        if is_due { Disk::flush(self) } else { Ok(()) }
    }

    /// Writes a part of a request; how many bytes it did.
    pub(super) fn write_step(
        &self,
        offset: u64,
        source: &Source<'_>,
        done: usize,
        operation: Operation,
    ) -> Result<u64, Error> {
        let len = source.len() - done as u64;
        let mut meta = self.lock();
        let bits = meta.header.cluster_bits;
        let first = offset >> bits;
        while meta.busy.contains(&first) {
            meta = self.settled.wait(meta).unwrap_or_else(PoisonError::into_inner);
        }
        let (mapping, run) = self.run(&mut meta, offset, len, operation)?;
        if let (Mapping::Stored(at, true), false) = (mapping, source.is_nothing()) {
            let within = offset & ((1 << bits) - 1);
            if !meta.is_moving_down {
                drop(meta);
                self.put(at + within, source, done, run as usize, offset, operation)?;
                return Ok(run);
            }
            // Not into clusters that are being moved, and those that this writes to wait with moving.
            let last = (offset + run - 1) >> bits;
            let end = (first + 1..=last).find(|cluster| meta.busy.contains(cluster)).unwrap_or(last + 1);
            let run = run.min((end << bits) - offset);
            meta.writing.push((first, end));
            drop(meta);
            let result = self.put(at + within, source, done, run as usize, offset, operation);
            let mut meta = self.lock();
            if let Some(index) = meta.writing.iter().position(|range| *range == (first, end)) {
                meta.writing.swap_remove(index);
            }
            drop(meta);
            self.settled.notify_all();
            return result.map(|()| run);
        }
        // Clusters that get another place, as far as one L2 table reaches.
        let table_end = ((first >> (bits - 3)) + 1) << (bits - 3);
        let last = ((offset + len - 1) >> bits).min(table_end - 1).min(first + STEP_CLUSTERS - 1);
        meta.own_l2(&self.file, first, operation)?;
        let mut old = Vec::new();
        for cluster in first..=last {
            let mapping = meta.mapping(&self.file, cluster, operation)?;
            let stays = matches!(mapping, Mapping::Stored(_, true));
            let wanted = if source.is_nothing() { mapping == Mapping::Absent } else { !stays };
            if !wanted || meta.busy.contains(&cluster) {
                break;
            }
            old.push(mapping);
        }
        if old.is_empty() {
            // Copying up what has its own place already.
            return Ok((((first + 1) << bits) - offset).min(len));
        }
        let (place, number) = meta.allocate(&self.file, old.len() as u64, operation)?;
        let is_fresh = meta.take_fresh(place, number);
        old.truncate(number as usize);
        meta.busy.extend(first..first + number);
        drop(meta);

        let end = ((first + number) << bits).min(offset + len);
        let moved = Moved { first, place, old: &old, is_fresh };
        let result = self.fill(&moved, offset, source, done, (end - offset) as usize, operation);

        let mut meta = self.lock();
        let result = result.and_then(|()| self.link(&mut meta, &moved, operation));
        if result.is_err() {
            for index in 0..number {
                meta.release(&self.file, place + (index << bits), operation)?;
            }
        }
        for cluster in first..first + number {
            meta.busy.remove(&cluster);
        }
        drop(meta);
        self.settled.notify_all();
        result.map(|()| end - offset)
    }

    /// Makes the table entries of moved clusters point to their new place.
    pub(super) fn link(&self, meta: &mut Meta, moved: &Moved<'_>, operation: Operation) -> Result<(), Error> {
        let bits = meta.header.cluster_bits;
        // The whole run lies in one table; loading its pieces first leaves nothing that can fail half-way.
        for index in 0..moved.old.len() as u64 {
            meta.mapping(&self.file, moved.first + index, operation)?;
        }
        for (index, old) in moved.old.iter().enumerate() {
            let index = index as u64;
            let mapping = Mapping::Stored(moved.place + (index << bits), true);
            meta.set_mapping(&self.file, moved.first + index, mapping, operation)?;
            unlink(meta, *old);
        }
        Ok(())
    }

    /// Fills clusters at their new place: the source's bytes, around them what was there before.
    pub(super) fn fill(
        &self,
        moved: &Moved<'_>,
        offset: u64,
        source: &Source<'_>,
        done: usize,
        len: usize,
        operation: Operation,
    ) -> Result<(), Error> {
        let bits = self.cluster_bits();
        let start = moved.first << bits;
        let end = start + ((moved.old.len() as u64) << bits);
        if source.is_nothing() {
            for (index, old) in moved.old.iter().enumerate() {
                let at = start + ((index as u64) << bits);
                self.keep_old(moved, start, *old, at, at + (1 << bits), operation)?;
            }
            return Ok(());
        }
        self.keep_old(moved, start, moved.old[0], start, offset, operation)?;
        self.put(moved.place + (offset - start), source, done, len, offset, operation)?;
        let last = *moved.old.last().expect("one at least");
        self.keep_old(moved, start, last, offset + len as u64, end, operation)
    }

    /// Copies what a cluster held before, between two bytes of the disk, to its new place.
    pub(super) fn keep_old(
        &self,
        moved: &Moved<'_>,
        start: u64,
        old: Mapping,
        from: u64,
        to: u64,
        operation: Operation,
    ) -> Result<(), Error> {
        if from >= to {
            return Ok(());
        }
        let place = moved.place + (from - start);
        let is_zero = match old {
            Mapping::Zero(_) => true,
            Mapping::Absent => self.backing().is_none_or(|backing| backing.info().size <= from),
            _ => false,
        };
        if is_zero {
            if moved.is_fresh {
                return Ok(());
            }
            return self
                .file
                .write_zeroes(place, to - from, false)
                .map_err(|error| self.failed(operation, from, (to - from) as usize, error));
        }
        let mut bytes = vec![0; (to - from) as usize];
        self.read_run(old, from, &mut Buffers::from_mut(&mut bytes))?;
        if moved.is_fresh && crate::bytes::is_zero(&bytes) {
            return Ok(());
        }
        self.file.write(place, &bytes, operation)
    }

    pub(super) fn put(
        &self,
        at: u64,
        source: &Source<'_>,
        done: usize,
        len: usize,
        offset: u64,
        operation: Operation,
    ) -> Result<(), Error> {
        let result = match source {
            Source::Buffers(from) if done == 0 && len == from.len() => {
                self.file.write_list(at, from, Durability::AtFlush)
            }
            Source::Buffers(from) => {
                self.file.write_list(at, &from.part_to_read(done, len), Durability::AtFlush)
            }
            Source::Zeroes(_) => self.file.write_zeroes(at, len as u64, false),
            Source::Nothing(_) => Ok(()),
        };
        result.map_err(|error| self.failed(operation, offset, len, error))
    }

    pub(super) fn write_all(
        &self,
        offset: u64,
        source: &Source<'_>,
        operation: Operation,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < source.len() {
            self.make_room()?;
            let _moving = self.begin_moving();
            done += self.write_step(offset + done, source, done as usize, operation)?;
        }
        Ok(())
    }

    /// Gives the disk from `offset` on a copy of its own of what the backing file shows there. What it
    /// has already stays as it is, whoever writes meanwhile.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn copy_up(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check(Operation::Write, offset, len)?;
        self.write_all(offset, &Source::Nothing(len), Operation::Write)
    }

    /// Whether whole clusters can be made zero (or absent) by their entries alone.
    pub(super) fn can_unmap(&self) -> bool {
        self.lock().header.version >= 3 || self.backing().is_none()
    }

    /// Makes whole clusters read as zeroes by their entries, and frees their storage.
    pub(super) fn unmap_clusters(&self, first: u64, end: u64, operation: Operation) -> Result<(), Error> {
        let mut cluster = first;
        while cluster < end {
            self.make_room()?;
            let _moving = self.begin_moving();
            let mut meta = self.lock();
            let per_table = 1 << (meta.header.cluster_bits - 3);
            let stop = end.min((cluster / per_table + 1) * per_table);
            let has_backing = self.backing().is_some();
            let is_bare = meta.l1[(cluster / per_table) as usize] & spec::OFFSET == 0;
            if is_bare && !has_backing {
                cluster = stop;
                continue;
            }
            meta.own_l2(&self.file, cluster, operation)?;
            while cluster < stop {
                if meta.busy.contains(&cluster) {
                    meta = self.settled.wait(meta).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                let old = meta.mapping(&self.file, cluster, operation)?;
                let new = if meta.header.version >= 3 { Mapping::Zero(None) } else { Mapping::Absent };
                if old != new && (old != Mapping::Absent || has_backing) {
                    meta.set_mapping(&self.file, cluster, new, operation)?;
                    unlink(&mut meta, old);
                }
                cluster += 1;
            }
        }
        Ok(())
    }
}

/// Clusters of the disk that get another place in the file.
pub(super) struct Moved<'a> {
    first: u64,
    place: u64,
    old: &'a [Mapping],
    /// Whether the new place is sure to read as zeroes.
    is_fresh: bool,
}

/// What a write puts where.
pub(super) enum Source<'a> {
    Buffers(&'a Buffers<'a>),
    Zeroes(u64),
    /// What is there already, in a place of its own.
    Nothing(u64),
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Source::Buffers(from) => from.len() as u64,
            Source::Zeroes(len) | Source::Nothing(len) => *len,
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Source::Nothing(_))
    }
}

/// Remembers the clusters of the file that an entry no longer points to.
pub(super) fn unlink(meta: &mut Meta, old: Mapping) {
    let bits = meta.header.cluster_bits;
    match old {
        Mapping::Absent | Mapping::Zero(None) => {}
        Mapping::Zero(Some(at)) | Mapping::Stored(at, _) => meta.unlinked.push(at >> bits),
        Mapping::Packed(at, len) => meta.unlinked.extend(at >> bits..=(at + len as u64 - 1) >> bits),
    }
}

/// The clusters that lie wholly within a range; the last one of the disk may be a part of one.
pub(super) fn whole_clusters(offset: u64, len: u64, size: u64, bits: u32) -> (u64, u64) {
    let first = offset.div_ceil(1 << bits);
    let end = if offset + len == size { size.div_ceil(1 << bits) } else { (offset + len) >> bits };
    (first.min(end), end)
}
