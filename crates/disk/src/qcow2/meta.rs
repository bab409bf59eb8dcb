//! The tables of an image in memory: what maps to where, what is free, and in which order changes may
//! reach the file.
//!
//! Changes of tables stay in memory until [`Qcow2::flush`](super::Qcow2) writes them in this order:
//!
//! ```text
//! reference counts, data, new L2 tables ──sync──> L2 entries, L1 entries ──sync──> clusters become free
//! ```
//!
//! So nothing in the file ever points to a cluster that is not counted, and no cluster is used again
//! while the file may still point to it. A crash at any moment leaks clusters at most.

use super::cache::Cache;
use super::header::Header;
use super::spec::*;
use crate::bytes::{be64, put_be64};
use crate::file::HostFile;
use crate::{Error, ErrorKind, Operation};
use std::collections::{BTreeSet, HashSet};

/// The file grows by this much at least: a hole at its end costs nothing.
const GROWTH: u64 = 16 << 20;
/// Memory for L2 tables: enough for 128 GiB of disk in clusters of 64 KiB.
const L2_CACHE: usize = 16 << 20;
const REFCOUNT_CACHE: usize = 4 << 20;

/// What an entry of an L2 table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The backing file shows through.
    Absent,
    /// Zeroes; storage may be reserved for it.
    Zero(Option<u64>),
    /// Stored at this place; whether nobody else refers to it.
    Stored(u64, bool),
    /// Compressed: first byte and length in the file.
    Packed(u64, u32),
}

/// One bit per cluster of the file: set for those that hold tables.
#[derive(Default)]
pub(super) struct Places(Vec<u64>);

impl Places {
    pub(super) fn set(&mut self, cluster: u64) {
        let word = (cluster / 64) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (cluster % 64);
    }

    pub(super) fn clear(&mut self, cluster: u64) {
        if let Some(word) = self.0.get_mut((cluster / 64) as usize) {
            *word &= !(1 << (cluster % 64));
        }
    }

    pub(super) fn has(&self, cluster: u64) -> bool {
        self.0.get((cluster / 64) as usize).is_some_and(|word| word >> (cluster % 64) & 1 != 0)
    }
}

pub(super) struct Meta {
    pub(super) header: Header,
    pub(super) l1: Vec<u64>,
    /// Entries of the L1 table that the file does not have yet.
    pub(super) l1_dirty: BTreeSet<usize>,
    pub(super) reftable: Vec<u64>,
    pub(super) l2: Cache,
    pub(super) refs: Cache,
    /// No cluster before this one is free, as far as known.
    pub(super) free_from: u64,
    /// From this cluster on nothing was ever used: it reads as zeroes.
    pub(super) fresh_from: u64,
    file_len: u64,
    /// Clusters to which the file may still point; one reference of each ends with the next flush.
    pub(super) unlinked: Vec<u64>,
    pub(super) tables: Places,
    /// Clusters of the disk that are being moved to another place.
    pub(super) busy: HashSet<u64>,
    /// Whether the image is being moved into the one below; only then `writing` is kept.
    pub(super) is_moving_down: bool,
    /// Clusters of the disk that are being written where they are: first and end of each write.
    pub(super) writing: Vec<(u64, u64)>,
}

impl Meta {
    /// Reads the tables that are held whole, and checks where tables lie.
    pub(super) fn read(file: &HostFile, header: Header) -> Result<Meta, Error> {
        let operation = Operation::Open;
        let file_len = file.len()?;
        let cluster = header.cluster_size();
        let table = |at: u64, entries: u64| -> Result<Vec<u64>, Error> {
            // Before memory is taken for it.
            if at.checked_add(entries * 8).is_none_or(|end| end > file_len) {
                return Err(file.damaged(operation, "one of its tables lies beyond the end of the file"));
            }
            let mut bytes = vec![0; entries as usize * 8];
            file.read(at, &mut bytes, operation)?;
            Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
        };
        let l1 = table(header.l1_at, header.l1_entries as u64)?;
        let reftable = table(header.reftable_at, header.reftable_clusters as u64 * cluster / 8)?;
        let mut meta = Meta {
            l1,
            reftable,
            l1_dirty: BTreeSet::new(),
            l2: Cache::new(cluster, L2_CACHE),
            refs: Cache::new(cluster, REFCOUNT_CACHE),
            free_from: 0,
            // A block device never reads as zeroes for certain.
            fresh_from: if file.is_block_device() { u64::MAX } else { file_len.div_ceil(cluster) },
            file_len,
            unlinked: Vec::new(),
            tables: Places::default(),
            busy: HashSet::new(),
            is_moving_down: false,
            writing: Vec::new(),
            header,
        };
        meta.find_tables(file)?;
        Ok(meta)
    }

    /// Marks the clusters of all active tables. Two tables in one place, or one outside the file, would
    /// make writes destroy the image (or the host's memory grow), so such an image is refused.
    fn find_tables(&mut self, file: &HostFile) -> Result<(), Error> {
        let fault = |what: &str| file.damaged(Operation::Open, format!("{what}; look at it with a check"));
        let (bits, file_len) = (self.header.cluster_bits, self.file_len);
        let mut mark = |at: u64, len: u64, what: &str| -> Result<(), Error> {
            for cluster in at >> bits..(at + len).div_ceil(1 << bits) {
                if self.tables.has(cluster) {
                    return Err(fault(&format!("{what} overlaps another table")));
                }
                self.tables.set(cluster);
            }
            Ok(())
        };
        mark(0, 1, "its header")?;
        mark(self.header.l1_at, self.header.l1_entries as u64 * 8, "its L1 table")?;
        mark(self.header.reftable_at, (self.header.reftable_clusters as u64) << bits, "its refcount table")?;
        for (entries, offset, reserved, what) in [
            (&self.reftable, REFTABLE_OFFSET, !REFTABLE_OFFSET, "a refcount block"),
            (&self.l1, OFFSET, L1_RESERVED, "an L2 table"),
        ] {
            for entry in entries.iter().filter(|entry| **entry != 0) {
                let at = entry & offset;
                if entry & reserved != 0 || at == 0 || at & ((1 << bits) - 1) != 0 {
                    return Err(fault(&format!("{what} lies at an impossible place")));
                }
                if at >= file_len {
                    return Err(fault(&format!("{what} lies beyond the end of the file")));
                }
                mark(at, 1, what)?;
            }
        }
        Ok(())
    }

    fn cluster_bits(&self) -> u32 {
        self.header.cluster_bits
    }

    /// Entries of one L2 table.
    fn l2_entries(&self) -> u64 {
        1 << (self.cluster_bits() - 3)
    }

    /// Where the L2 entry of a cluster of the disk lies in the file; `None` when there is no table yet.
    fn l2_entry_at(&self, cluster: u64) -> Option<u64> {
        let entry = self.l1.get((cluster / self.l2_entries()) as usize)?;
        let table = entry & OFFSET;
        (table != 0).then(|| table + cluster % self.l2_entries() * 8)
    }

    /// What the entry of a cluster of the disk says.
    pub(super) fn mapping(
        &mut self,
        file: &HostFile,
        cluster: u64,
        operation: Operation,
    ) -> Result<Mapping, Error> {
        let Some(at) = self.l2_entry_at(cluster) else { return Ok(Mapping::Absent) };
        let entry = self.l2.entry(file, at, operation)?;
        self.decode(file, entry, operation)
    }

    pub(super) fn decode(&self, file: &HostFile, entry: u64, operation: Operation) -> Result<Mapping, Error> {
        decode(&self.header, entry)
            .and_then(|mapping| {
                let place = match mapping {
                    Mapping::Zero(Some(at)) | Mapping::Stored(at, _) => at,
                    Mapping::Packed(at, _) => at,
                    _ => return Ok(mapping),
                };
                if self.tables.has(place >> self.cluster_bits()) {
                    return Err("a cluster of data lies where a table is");
                }
                Ok(mapping)
            })
            .map_err(|why| file.damaged(operation, format!("{why} (entry {entry:#x})")))
    }

    /// Sets the entry of a cluster of the disk. The table is there: see [`Meta::own_l2`].
    pub(super) fn set_mapping(
        &mut self,
        file: &HostFile,
        cluster: u64,
        mapping: Mapping,
        operation: Operation,
    ) -> Result<(), Error> {
        let at = self.l2_entry_at(cluster).expect("the table was made");
        let entry = encode(&self.header, mapping);
        put_be64(self.l2.bytes_mut(file, at, operation)?, 0, entry);
        Ok(())
    }

    /// Makes sure that the L2 table of a cluster of the disk is there, and not shared with a snapshot.
    pub(super) fn own_l2(
        &mut self,
        file: &HostFile,
        cluster: u64,
        operation: Operation,
    ) -> Result<(), Error> {
        let index = (cluster / self.l2_entries()) as usize;
        let entry = self.l1[index];
        if entry & COPIED != 0 {
            return Ok(());
        }
        let size = self.header.cluster_size();
        let (place, _) = self.allocate(file, 1, operation)?;
        self.take_fresh(place, 1);
        let mut table = vec![0; size as usize];
        let old = entry & OFFSET;
        let result = if old == 0 { Ok(()) } else { file.read(old, &mut table, operation) };
        // Nothing points to it before the next flush, which comes after a sync.
        if let Err(error) = result.and_then(|()| file.write(place, &table, operation)) {
            self.release(file, place, operation)?;
            return Err(error);
        }
        self.l2.forget(place, size);
        if old != 0 {
            self.tables.clear(old >> self.cluster_bits());
            self.unlinked.push(old >> self.cluster_bits());
        }
        self.tables.set(place >> self.cluster_bits());
        self.l1[index] = place | COPIED;
        self.l1_dirty.insert(index);
        Ok(())
    }

    // Reference counts.

    /// Reference counts of one refcount block.
    fn block_entries(&self) -> u64 {
        1 << (self.cluster_bits() + 3 - self.header.refcount_order)
    }

    /// The refcount block that counts a cluster, and the bit in it where its count begins.
    fn count_place(&self, cluster: u64) -> (usize, u64) {
        let entries = self.block_entries();
        ((cluster / entries) as usize, (cluster % entries) << self.header.refcount_order)
    }

    /// How many references a cluster of the file has.
    pub(super) fn count(
        &mut self,
        file: &HostFile,
        cluster: u64,
        operation: Operation,
    ) -> Result<u64, Error> {
        let (block, bit) = self.count_place(cluster);
        let Some(&entry) = self.reftable.get(block).filter(|entry| **entry != 0) else { return Ok(0) };
        let order = self.header.refcount_order;
        // A count may not begin at a byte, but never crosses one unless it begins at one.
        let bytes = self.refs.bytes(file, (entry & REFTABLE_OFFSET) + bit / 8, operation)?;
        Ok(read_count(bytes, order, bit % 8))
    }

    fn set_count(
        &mut self,
        file: &HostFile,
        cluster: u64,
        count: u64,
        operation: Operation,
    ) -> Result<(), Error> {
        let (block, bit) = self.count_place(cluster);
        let (entry, order) = (self.reftable[block], self.header.refcount_order);
        let bytes = self.refs.bytes_mut(file, (entry & REFTABLE_OFFSET) + bit / 8, operation)?;
        write_count(bytes, order, bit % 8, count);
        Ok(())
    }

    /// Takes up to `wanted` free clusters that lie together: their place and number, one at least.
    pub(super) fn allocate(
        &mut self,
        file: &HostFile,
        wanted: u64,
        operation: Operation,
    ) -> Result<(u64, u64), Error> {
        let bits = self.cluster_bits();
        let mut first = self.free_from;
        loop {
            self.ensure_block(file, first, operation)?;
            if !self.tables.has(first) && self.count(file, first, operation)? == 0 {
                break;
            }
            first += 1;
        }
        // Nothing before it is free, whatever follows.
        self.free_from = first;
        let mut number = 0;
        while number < wanted {
            let cluster = first + number;
            let has_block = self.reftable.get(self.count_place(cluster).0).is_some_and(|entry| *entry != 0);
            if !has_block || self.tables.has(cluster) || self.count(file, cluster, operation)? != 0 {
                break;
            }
            number += 1;
        }
        let end = (first + number) << bits;
        if end > 1 << 56 {
            return Err(no_room(file, operation));
        }
        self.reach(file, end, operation)?;
        for cluster in first..first + number {
            self.set_count(file, cluster, 1, operation)?;
        }
        self.free_from = first + number;
        Ok((first << bits, number))
    }

    /// Takes free clusters that lie together, all of them.
    pub(super) fn allocate_together(
        &mut self,
        file: &HostFile,
        wanted: u64,
        operation: Operation,
    ) -> Result<u64, Error> {
        let free_from = self.free_from;
        loop {
            let (place, number) = self.allocate(file, wanted, operation)?;
            if number == wanted {
                self.free_from = free_from;
                return Ok(place);
            }
            for cluster in 0..number {
                self.release(file, place + (cluster << self.cluster_bits()), operation)?;
            }
            // Behind the gap that was too small; where no block counts yet, one is made by `allocate`.
            self.free_from = (place >> self.cluster_bits()) + number;
        }
    }

    /// Makes the file at least so long.
    pub(super) fn reach(&mut self, file: &HostFile, end: u64, operation: Operation) -> Result<(), Error> {
        if end <= self.file_len {
            return Ok(());
        }
        if file.is_block_device() {
            return Err(no_room(file, operation));
        }
        let len = end.max(self.file_len.next_multiple_of(GROWTH).max(end.next_multiple_of(GROWTH)));
        // A file system near its limit of a file's size may still have room for what is needed.
        match file.set_len(len, operation) {
            Ok(()) => self.file_len = len,
            Err(_) => {
                file.set_len(end, operation)?;
                self.file_len = end;
            }
        }
        Ok(())
    }

    /// Whether these clusters are sure to read as zeroes; they are in use from then on.
    pub(super) fn take_fresh(&mut self, place: u64, number: u64) -> bool {
        let first = place >> self.cluster_bits();
        if first < self.fresh_from {
            self.fresh_from = self.fresh_from.max(first + number);
            return false;
        }
        self.fresh_from = first + number;
        true
    }

    /// Gives back a cluster that was taken and never became part of the image.
    pub(super) fn release(&mut self, file: &HostFile, place: u64, operation: Operation) -> Result<(), Error> {
        self.drop_reference(file, place >> self.cluster_bits(), operation).map(drop)
    }

    /// Ends one reference to a cluster; whether it was the last.
    pub(super) fn drop_reference(
        &mut self,
        file: &HostFile,
        cluster: u64,
        operation: Operation,
    ) -> Result<bool, Error> {
        let count = self.count(file, cluster, operation)?;
        // Already zero in a damaged image: leave it.
        if count == 0 || self.tables.has(cluster) {
            return Ok(false);
        }
        self.set_count(file, cluster, count - 1, operation)?;
        if count == 1 {
            self.free_from = self.free_from.min(cluster);
        }
        Ok(count == 1)
    }

    /// Adds a reference to a cluster that is in use; `false` when its count is full.
    pub(super) fn count_up(
        &mut self,
        file: &HostFile,
        cluster: u64,
        operation: Operation,
    ) -> Result<bool, Error> {
        let count = self.count(file, cluster, operation)?;
        let width = 1u32 << self.header.refcount_order;
        if count >= u64::MAX >> (64 - width) {
            return Ok(false);
        }
        self.set_count(file, cluster, count + 1, operation)?;
        Ok(true)
    }

    /// Makes sure that there is a refcount block for a cluster.
    fn ensure_block(&mut self, file: &HostFile, cluster: u64, operation: Operation) -> Result<(), Error> {
        let (block, _) = self.count_place(cluster);
        if block >= self.reftable.len() {
            self.grow_reftable(file, block, operation)?;
        }
        if self.reftable[block] != 0 {
            return Ok(());
        }
        // The block counts itself: nothing that it counts was in use before.
        let first = block as u64 * self.block_entries();
        let mut own = first;
        while self.tables.has(own) {
            own += 1;
            if own == first + self.block_entries() {
                return Err(file.damaged(operation, "its tables fill a place that is not counted"));
            }
        }
        let bits = self.cluster_bits();
        self.reach(file, (own + 1) << bits, operation)?;
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        let (_, bit) = self.count_place(own);
        write_count(&mut bytes[(bit / 8) as usize..], self.header.refcount_order, bit % 8, 1);
        file.write(own << bits, &bytes, operation)?;
        file.sync(operation)?;
        let mut entry = [0; 8];
        put_be64(&mut entry, 0, own << bits);
        file.write(self.header.reftable_at + block as u64 * 8, &entry, operation)?;
        self.refs.forget(own << bits, self.header.cluster_size());
        self.reftable[block] = own << bits;
        self.tables.set(own);
        self.take_fresh(own << bits, 1);
        Ok(())
    }

    /// Moves the refcount table to a larger one, so that it has an entry for `block`.
    ///
    /// The new table lies in the range that the first new block counts, so that nothing else has to
    /// grow first: `[block][table …]`.
    fn grow_reftable(&mut self, file: &HostFile, block: usize, operation: Operation) -> Result<(), Error> {
        let (bits, size) = (self.cluster_bits(), self.header.cluster_size());
        let per_cluster = size / 8;
        let clusters = ((block as u64 + 1) * 3 / 2 + 1).div_ceil(per_cluster);
        if clusters << bits > REFTABLE_BYTES_MAX || clusters + 1 > self.block_entries() {
            return Err(no_room(file, operation));
        }
        let first = block as u64 * self.block_entries();
        if (first..=first + clusters).any(|cluster| self.tables.has(cluster)) {
            return Err(file.damaged(operation, "its tables fill a place that is not counted"));
        }
        self.reach(file, (first + 1 + clusters) << bits, operation)?;
        let mut counts = vec![0; size as usize];
        for cluster in first..=first + clusters {
            let (_, bit) = self.count_place(cluster);
            write_count(&mut counts[(bit / 8) as usize..], self.header.refcount_order, bit % 8, 1);
        }
        let mut entries = self.reftable.clone();
        entries.resize((clusters * per_cluster) as usize, 0);
        entries[block] = first << bits;
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        file.write(first << bits, &counts, operation)?;
        file.write((first + 1) << bits, &bytes, operation)?;
        file.sync(operation)?;
        let mut fields = [0; 12];
        put_be64(&mut fields, 0, (first + 1) << bits);
        fields[8..].copy_from_slice(&(clusters as u32).to_be_bytes());
        file.write(REFTABLE_AT, &fields, operation)?;
        file.sync(operation)?;
        let old = (self.header.reftable_at >> bits, self.header.reftable_clusters as u64);
        self.header.reftable_at = (first + 1) << bits;
        self.header.reftable_clusters = clusters as u32;
        self.reftable = entries;
        self.refs.forget(first << bits, size);
        for cluster in first..=first + clusters {
            self.tables.set(cluster);
        }
        self.take_fresh(first << bits, clusters + 1);
        for cluster in old.0..old.0 + old.1 {
            self.tables.clear(cluster);
            self.drop_reference(file, cluster, operation)?;
        }
        Ok(())
    }
}

fn no_room(file: &HostFile, operation: Operation) -> Error {
    Error::new(ErrorKind::NoSpace, operation)
        .with_path(file.path())
        .with_detail("the image cannot become larger where it is stored")
}

/// What an L2 entry says, apart from whether that can be.
pub(super) fn decode(header: &Header, entry: u64) -> Result<Mapping, &'static str> {
    if entry & COMPRESSED != 0 {
        // "Compressed Clusters Descriptor": the place in the low bits, then the number of additional
        // sectors of 512 bytes.
        let offset_bits = 62 - (header.cluster_bits - 8);
        let at = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
        let len = (sectors + 1) * 512 - at % 512;
        if at == 0 || at > 1 << 56 {
            return Err("a compressed cluster lies at an impossible place");
        }
        return Ok(Mapping::Packed(at, len as u32));
    }
    let (at, is_zero) = (entry & OFFSET, entry & ZERO != 0);
    if entry & L2_RESERVED != 0 || (is_zero && header.version < 3) {
        return Err("a table has bits that must be zero");
    }
    if at & (header.cluster_size() - 1) != 0 {
        return Err("a cluster lies at an impossible place");
    }
    Ok(match (at, is_zero) {
        (0, false) => Mapping::Absent,
        (0, true) => Mapping::Zero(None),
        (at, true) => Mapping::Zero(Some(at)),
        (at, false) => Mapping::Stored(at, entry & COPIED != 0),
    })
}

pub(super) fn encode(header: &Header, mapping: Mapping) -> u64 {
    match mapping {
        Mapping::Absent => 0,
        Mapping::Zero(None) => ZERO,
        Mapping::Zero(Some(at)) => at | ZERO | COPIED,
        Mapping::Stored(at, is_own) => at | if is_own { COPIED } else { 0 },
        Mapping::Packed(at, len) => {
            let offset_bits = 62 - (header.cluster_bits - 8);
            let sectors = (at + len as u64 - 1) / 512 - at / 512;
            COMPRESSED | sectors << offset_bits | at
        }
    }
}

pub(super) fn read_count(bytes: &[u8], order: u32, bit: u64) -> u64 {
    match order {
        0..=2 => bytes[0] as u64 >> bit & ((1 << (1 << order)) - 1),
        _ => bytes[..1 << (order - 3)].iter().fold(0, |value, byte| value << 8 | *byte as u64),
    }
}

pub(super) fn write_count(bytes: &mut [u8], order: u32, bit: u64, count: u64) {
    match order {
        0..=2 => {
            let mask = ((1u64 << (1 << order)) - 1) << bit;
            bytes[0] = (bytes[0] as u64 & !mask | count << bit) as u8;
        }
        _ => {
            let len = 1 << (order - 3);
            bytes[..len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
        }
    }
}
