//! qcow2, versions 2 and 3: an image that grows as it is used, over a backing file if it has one.
//!
//! `header.rs` parses, `meta.rs` keeps the tables, `packed.rs` compresses, `create.rs` and `resize.rs`
//! make and enlarge images, `check.rs` judges and repairs them; here data moves.
//!
//! A request is cut into runs of clusters that map alike. Data goes straight between the file and the
//! request's buffers. A write to clusters that have no place of their own takes free ones, fills in what
//! the request leaves of them, and then changes their table entries; meanwhile they are *busy*, and
//! other writes to them wait. What reaches the file in which order is said in `meta.rs`.

mod cache;
mod check;
mod create;
mod header;
mod meta;
mod packed;
mod resize;
mod spec;

pub use check::{CheckReport, Repair};
pub use create::CreateOptions;
pub use header::{Backing, Compression, Snapshot};

use crate::file::HostFile;
use crate::{
    Buffers, Content, Disk, DiskInfo, Durability, Error, ErrorKind, Extent, Operation, Progress, SECTOR_SIZE,
    Unmap,
};
use header::{Header, HeaderFault};
use meta::{Mapping, Meta};
pub(crate) use packed::PackedEnd;
use packed::Unpacked;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// More clusters than this are not moved by one step of a write.
const STEP_CLUSTERS: u64 = 1024;
/// Bytes of an image that are moved down at a time; writes to them wait so long.
const MOVED_PIECE: u64 = 4 << 20;
/// So many clusters may wait to become free before a flush is due.
const UNLINKED_MAX: usize = 1 << 16;

/// A qcow2 image that is open.
pub struct Qcow2 {
    file: HostFile,
    backing: RwLock<Option<Arc<dyn Disk>>>,
    meta: Mutex<Meta>,
    /// Told when clusters are no longer busy.
    settled: Condvar,
    /// Held by the one thread that flushes.
    flushing: Mutex<()>,
    /// Held shared while data moves; alone while clusters become free, so that nobody still reads them.
    moving: RwLock<()>,
    size: AtomicU64,
    unpacked: Mutex<Unpacked>,
    snapshots: Vec<Snapshot>,
}

/// Facts about an image that are not about its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Unit of allocation in bytes.
    pub cluster_size: u64,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// How clusters are compressed, if any are.
    pub compression: Compression,
    /// Whether reference counts may be out of date while the image is in use.
    pub lazy_refcounts: bool,
    /// Whether it was not closed properly: its reference counts may be out of date.
    pub is_dirty: bool,
    /// Whether some program found it damaged.
    pub is_corrupt: bool,
    /// The backing file that it names.
    pub backing: Option<Backing>,
    /// Its internal snapshots.
    pub snapshots: Vec<Snapshot>,
}

impl Qcow2 {
    /// Reads what an image is, without its tables.
    pub(crate) fn read_info(file: &HostFile) -> Result<Qcow2Info, Error> {
        Qcow2::read_size_and_info(file).map(|(_, info)| info)
    }

    /// The same, and the size of the disk.
    pub(crate) fn read_size_and_info(file: &HostFile) -> Result<(u64, Qcow2Info), Error> {
        let (header, snapshots) = read_header(file)?;
        Ok((header.size, describe(&header, &snapshots)))
    }

    /// Opens an image whose backing file, if it names one, is `backing`; with the name or number of an
    /// internal snapshot, that one, to be read only.
    pub(crate) fn open(
        file: HostFile,
        backing: Option<Arc<dyn Disk>>,
        snapshot: Option<&str>,
    ) -> Result<Qcow2, Error> {
        let (mut header, snapshots) = read_header(&file)?;
        if let Some(wanted) = snapshot {
            let found = snapshots
                .iter()
                .find(|s| s.name == wanted)
                .or_else(|| snapshots.iter().find(|s| s.id == wanted));
            let Some(found) = found else {
                let names: Vec<_> = snapshots.iter().map(|snapshot| format!("{:?}", snapshot.name)).collect();
                let has = if names.is_empty() { "none".into() } else { names.join(", ") };
                return Err(Error::new(ErrorKind::NotFound, Operation::Open)
                    .with_path(file.path())
                    .with_detail(format!("it has no internal snapshot {wanted:?}; it has {has}")));
            };
            (header.l1_at, header.l1_entries, header.size) = (found.l1_at, found.l1_entries, found.disk_size);
        }
        if header.size < SECTOR_SIZE {
            return Err(file.damaged(Operation::Open, "its disk has no size"));
        }
        if file.is_writable() && header.is_corrupt {
            return Err(file.damaged(
                Operation::Open,
                "it is marked as corrupt; repair it with `arnia disk check --repair all`, or open it read-only",
            ));
        }
        if file.is_writable() && header.is_dirty {
            check::repair_dirty(&file)?;
            (header, _) = read_header(&file)?;
        }
        if file.is_writable() && header.autoclear != 0 {
            // Bitmaps and the like, which would be out of date after the first write.
            file.write(spec::AUTOCLEAR_AT, &[0; 8], Operation::Open)?;
            header.autoclear = 0;
        }
        let size = AtomicU64::new(header.size);
        let meta = Meta::read(&file, header)?;
        Ok(Qcow2 {
            file,
            backing: RwLock::new(backing),
            meta: Mutex::new(meta),
            settled: Condvar::new(),
            flushing: Mutex::new(()),
            moving: RwLock::new(()),
            size,
            unpacked: Mutex::default(),
            snapshots,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Nothing is made safe from a crash of the host: for an image in the making.
    pub(crate) fn leave_out_syncs(&self) {
        self.file.leave_out_syncs();
    }

    /// What the image is.
    pub fn image_info(&self) -> Qcow2Info {
        describe(&self.lock().header, &self.snapshots)
    }

    /// Its backing disk.
    pub fn backing(&self) -> Option<Arc<dyn Disk>> {
        self.backing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_moving(&self) -> RwLockReadGuard<'_, ()> {
        self.moving.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), Error> {
        self.info().check(operation, offset, len).map_err(|error| error.with_path(self.path()))
    }

    fn cluster_bits(&self) -> u32 {
        self.lock().header.cluster_bits
    }

    /// How the disk maps from `offset` on, and how many bytes map alike, `len` at most.
    fn run(
        &self,
        meta: &mut Meta,
        offset: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Mapping, u64), Error> {
        let bits = meta.header.cluster_bits;
        let (first, last) = (offset >> bits, (offset + len - 1) >> bits);
        let mapping = meta.mapping(&self.file, first, operation)?;
        let mut cluster = first;
        while cluster < last && cluster - first < STEP_CLUSTERS {
            let next = meta.mapping(&self.file, cluster + 1, operation)?;
            let goes_on = match (mapping, next) {
                (Mapping::Absent, Mapping::Absent) | (Mapping::Zero(_), Mapping::Zero(_)) => true,
                (Mapping::Stored(at, own), Mapping::Stored(next, next_own)) => {
                    own == next_own && next == at + ((cluster + 1 - first) << bits)
                }
                _ => false,
            };
            if !goes_on {
                break;
            }
            cluster += 1;
        }
        let end = (cluster + 1) << bits;
        Ok((mapping, (end - offset).min(len)))
    }

    /// Fills `into` with what a run that begins with `mapping` holds from byte `offset` of the disk on.
    fn read_run(&self, mapping: Mapping, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len();
        let bits = self.cluster_bits();
        let within = offset & ((1 << bits) - 1);
        match mapping {
            Mapping::Zero(_) => {
                into.zero(0, len);
                Ok(())
            }
            Mapping::Absent => match self.backing() {
                None => {
                    into.zero(0, len);
                    Ok(())
                }
                Some(backing) => read_clamped(&*backing, offset, into),
            },
            Mapping::Stored(at, _) => match self.file.read_list(at + within, into) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.read_at_end(at, at + within, into)
                }
                result => result.map_err(|error| self.failed(Operation::Read, offset, len, error)),
            },
            Mapping::Packed(at, packed_len) => {
                let compression = self.lock().header.compression;
                let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
                let cluster = unpacked.cluster(&self.file, compression, at, packed_len, 1 << bits)?;
                drop(unpacked);
                into.copy_from(0, &cluster[within as usize..][..len]);
                Ok(())
            }
        }
    }

    /// Reads where the file ends: other programs leave the last cluster unfinished, and what is missing
    /// of it is zero.
    fn read_at_end(&self, cluster_at: u64, at: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let (file_len, len) = (self.file.len()?, into.len());
        if cluster_at >= file_len {
            return Err(self.file.damaged(
                Operation::Read,
                format!("a cluster lies at {cluster_at:#x}, beyond the end of the file: it was cut off"),
            ));
        }
        let there = (file_len.saturating_sub(at) as usize).min(len);
        self.file
            .read_list(at, &mut into.part(0, there))
            .map_err(|error| self.file.failed(Operation::Read, error))?;
        into.zero(there, len - there);
        Ok(())
    }

    fn failed(&self, operation: Operation, offset: u64, len: usize, source: io::Error) -> Error {
        self.file.failed(operation, source).with_range(offset, len as u64)
    }

    /// Flushes when too much waits in memory.
    fn make_room(&self) -> Result<(), Error> {
        let meta = self.lock();
        let is_due = meta.l2.is_crowded() || meta.refs.is_crowded() || meta.unlinked.len() > UNLINKED_MAX;
        drop(meta);
        if is_due { Disk::flush(self) } else { Ok(()) }
    }

    /// Writes a part of a request; how many bytes it did.
    fn write_step(
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
    fn link(&self, meta: &mut Meta, moved: &Moved<'_>, operation: Operation) -> Result<(), Error> {
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
    fn fill(
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
    fn keep_old(
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

    fn put(
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

    fn write_all(&self, offset: u64, source: &Source<'_>, operation: Operation) -> Result<(), Error> {
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
    fn can_unmap(&self) -> bool {
        self.lock().header.version >= 3 || self.backing().is_none()
    }

    /// Makes whole clusters read as zeroes by their entries, and frees their storage.
    fn unmap_clusters(&self, first: u64, end: u64, operation: Operation) -> Result<(), Error> {
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

    /// Moves all that the image itself stores into `below`, which it stands on, so that the backing file shows
    /// everywhere. Guests may use the disk meanwhile; what they write stays in the image if it came too late.
    ///
    /// Piece by piece: other writes to it wait, it is copied, made safe below, and then its entries go. So
    /// whenever the process ends, each cluster is in one of the two.
    pub(crate) fn move_down(&self, below: &dyn Disk, progress: &Progress) -> Result<(), Error> {
        self.lock().is_moving_down = true;
        // Whoever writes without having heard of it has done so by then.
        drop(self.moving.write().unwrap_or_else(PoisonError::into_inner));
        let result = self.move_down_pieces(below, progress);
        self.lock().is_moving_down = false;
        result
    }

    fn move_down_pieces(&self, below: &dyn Disk, progress: &Progress) -> Result<(), Error> {
        let operation = Operation::Commit;
        let bits = self.cluster_bits();
        let size = self.info().size;
        let end = size.div_ceil(1 << bits);
        progress.begin(size);
        let mut cluster = 0;
        let mut bytes = Vec::new();
        while cluster < end {
            progress.check(operation)?;
            self.make_room()?;
            let moving = self.begin_moving();
            let mut meta = self.lock();
            let per_table = 1 << (bits - 3);
            let table_end = end.min((cluster / per_table + 1) * per_table);
            if meta.l1[(cluster / per_table) as usize] & spec::OFFSET == 0 {
                drop(meta);
                progress.advance(((table_end - cluster) << bits).min(size - (cluster << bits)));
                cluster = table_end;
                continue;
            }
            while meta.busy.contains(&cluster) {
                meta = self.settled.wait(meta).unwrap_or_else(PoisonError::into_inner);
            }
            let piece_end = table_end.min(cluster + (MOVED_PIECE >> bits).max(1));
            let mut piece = Vec::new();
            for number in cluster..piece_end {
                let mapping = meta.mapping(&self.file, number, operation)?;
                if meta.busy.contains(&number) {
                    break;
                }
                piece.push(mapping);
            }
            let number = piece.len() as u64;
            if piece.iter().any(|mapping| *mapping != Mapping::Absent) {
                meta.busy.extend(cluster..cluster + number);
                let overlaps = |range: &(u64, u64)| range.0 < cluster + number && cluster < range.1;
                while meta.writing.iter().any(overlaps) {
                    meta = self.settled.wait(meta).unwrap_or_else(PoisonError::into_inner);
                }
                drop(meta);
                let copied = piece.iter().zip(cluster..).try_for_each(|(mapping, number)| {
                    self.copy_down(below, *mapping, number << bits, &mut bytes)
                });
                let copied = copied.and_then(|()| below.flush());
                let mut meta = self.lock();
                let result = copied.and_then(|()| {
                    meta.own_l2(&self.file, cluster, operation)?;
                    for number in cluster..cluster + number {
                        // As it is now: a guest may have discarded it meanwhile, which waits for nobody.
                        let now = meta.mapping(&self.file, number, operation)?;
                        if now != Mapping::Absent {
                            meta.set_mapping(&self.file, number, Mapping::Absent, operation)?;
                            unlink(&mut meta, now);
                        }
                    }
                    Ok(())
                });
                for number in cluster..cluster + number {
                    meta.busy.remove(&number);
                }
                drop(meta);
                self.settled.notify_all();
                result?;
            } else {
                drop(meta);
            }
            drop(moving);
            progress.advance((number << bits).min(size - (cluster << bits)));
            cluster += number;
        }
        self.flush_all()
    }

    /// Copies a cluster to the image below, as far as it is a part of the disk.
    fn copy_down(
        &self,
        below: &dyn Disk,
        mapping: Mapping,
        offset: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let len = (1u64 << self.cluster_bits()).min(self.info().size - offset);
        match mapping {
            Mapping::Absent => Ok(()),
            Mapping::Zero(_) => below.write_zeroes(offset, len, Unmap::Allowed, Durability::AtFlush),
            Mapping::Stored(..) | Mapping::Packed(..) => {
                bytes.resize(len as usize, 0);
                self.read_run(mapping, offset, &mut Buffers::from_mut(bytes))?;
                below.write(offset, &Buffers::from_slice(bytes), Durability::AtFlush)
            }
        }
    }

    /// Forgets all that the image itself stores, so that the backing file shows everywhere.
    pub(crate) fn empty(&self) -> Result<(), Error> {
        let operation = Operation::Commit;
        let mut cluster = 0;
        let end = self.info().size.div_ceil(1 << self.cluster_bits());
        while cluster < end {
            self.make_room()?;
            let _moving = self.begin_moving();
            let mut meta = self.lock();
            let per_table = 1 << (meta.header.cluster_bits - 3);
            let stop = end.min((cluster / per_table + 1) * per_table);
            if meta.l1[(cluster / per_table) as usize] & spec::OFFSET != 0 {
                meta.own_l2(&self.file, cluster, operation)?;
                for cluster in cluster..stop {
                    let old = meta.mapping(&self.file, cluster, operation)?;
                    if old != Mapping::Absent {
                        meta.set_mapping(&self.file, cluster, Mapping::Absent, operation)?;
                        unlink(&mut meta, old);
                    }
                }
            }
            cluster = stop;
        }
        self.flush_all()
    }

    /// See [`meta`]: the order in which changes reach the file.
    fn flush_all(&self) -> Result<(), Error> {
        let operation = Operation::Flush;
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut meta = self.lock();
        meta.refs.write_back(&self.file, operation)?;
        let copies = meta.l2.copies();
        let l1: Vec<_> = meta.l1_dirty.iter().map(|index| (*index, meta.l1[*index])).collect();
        let unlinked = std::mem::take(&mut meta.unlinked);
        let l1_at = meta.header.l1_at;
        drop(meta);
        let result = self.write_tables(&copies, &l1, l1_at);
        let mut meta = self.lock();
        if let Err(error) = result {
            meta.unlinked.extend(unlinked);
            return Err(error);
        }
        meta.l2.written(&copies);
        for (index, value) in l1 {
            if meta.l1[index] == value {
                meta.l1_dirty.remove(&index);
            }
        }
        drop(meta);
        self.free(unlinked)
    }

    fn write_tables(&self, copies: &[cache::Copy], l1: &[(usize, u64)], l1_at: u64) -> Result<(), Error> {
        self.file.sync(Operation::Flush)?;
        if copies.is_empty() && l1.is_empty() {
            return Ok(());
        }
        for copy in copies {
            self.file.write(copy.at, &copy.bytes, Operation::Flush)?;
        }
        for (index, value) in l1 {
            self.file.write(l1_at + *index as u64 * 8, &value.to_be_bytes(), Operation::Flush)?;
        }
        self.file.sync(Operation::Flush)
    }

    /// Ends references that the file no longer has, and gives storage back to the host.
    fn free(&self, mut clusters: Vec<u64>) -> Result<(), Error> {
        if clusters.is_empty() {
            return Ok(());
        }
        clusters.sort_unstable();
        // Nobody reads or writes what becomes free.
        let _alone = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut meta = self.lock();
        let bits = meta.header.cluster_bits;
        let mut hole: Option<(u64, u64)> = None;
        let punch = |hole: (u64, u64)| {
            // Storage that stays occupied is no failure.
            let _ = self.file.punch_hole(hole.0 << bits, (hole.1 - hole.0) << bits);
        };
        for cluster in clusters {
            if !meta.drop_reference(&self.file, cluster, Operation::Flush)? {
                continue;
            }
            hole = Some(match hole {
                Some((first, end)) if end == cluster => (first, end + 1),
                other => {
                    other.map(punch);
                    (cluster, cluster + 1)
                }
            });
        }
        hole.map(punch);
        Ok(())
    }

    /// Makes everything safe, and takes no more changes. Nobody writes meanwhile.
    pub(crate) fn freeze(&self) -> Result<(), Error> {
        self.close()?;
        self.file.freeze()
    }

    /// Makes everything safe and the file as short as it can be. What fails is lost; the image stays
    /// sound.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.flush_all()?;
        let mut meta = self.lock();
        meta.refs.write_back(&self.file, Operation::Flush)?;
        let end = meta.fresh_from << meta.header.cluster_bits;
        if !self.file.is_block_device() && end < self.file.len()? {
            self.file.set_len(end, Operation::Flush)?;
        }
        Ok(())
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.file.is_writable() {
            let _ = self.close();
        }
    }
}

/// Clusters of the disk that get another place in the file.
struct Moved<'a> {
    first: u64,
    place: u64,
    old: &'a [Mapping],
    /// Whether the new place is sure to read as zeroes.
    is_fresh: bool,
}

/// What a write puts where.
enum Source<'a> {
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
fn unlink(meta: &mut Meta, old: Mapping) {
    let bits = meta.header.cluster_bits;
    match old {
        Mapping::Absent | Mapping::Zero(None) => {}
        Mapping::Zero(Some(at)) | Mapping::Stored(at, _) => meta.unlinked.push(at >> bits),
        Mapping::Packed(at, len) => meta.unlinked.extend(at >> bits..=(at + len as u64 - 1) >> bits),
    }
}

/// Reads from a disk that may be shorter than the one over it: beyond its end there are zeroes.
pub(crate) fn read_clamped(disk: &dyn Disk, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
    let len = into.len();
    let there = (disk.info().size.saturating_sub(offset)).min(len as u64) as usize;
    if there == len {
        return disk.read(offset, into);
    }
    if there > 0 {
        disk.read(offset, &mut into.part(0, there))?;
    }
    into.zero(there, len - there);
    Ok(())
}

/// What a disk that may be shorter holds at a place; zeroes beyond its end.
pub(crate) fn extent_clamped(disk: &dyn Disk, offset: u64, len: u64) -> Result<Extent, Error> {
    let there = disk.info().size.saturating_sub(offset).min(len);
    if there == 0 {
        return Ok(Extent { len, content: Content::Zeroes, depth: 0, present: false, file_offset: None });
    }
    disk.extent(offset, there)
}

impl Disk for Qcow2 {
    fn info(&self) -> DiskInfo {
        let cluster_size = 1 << self.cluster_bits();
        DiskInfo {
            size: self.size.load(Ordering::Acquire),
            read_only: !self.file.is_writable(),
            logical_block_size: 512,
            physical_block_size: 4096,
            discard_granularity: self.file.is_writable().then_some(cluster_size),
        }
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len() as u64;
        self.check(Operation::Read, offset, len)?;
        let _moving = self.begin_moving();
        let mut done = 0;
        while done < len {
            let (mapping, run) = self.run(&mut self.lock(), offset + done, len - done, Operation::Read)?;
            if run == len {
                return self.read_run(mapping, offset, into);
            }
            self.read_run(mapping, offset + done, &mut into.part(done as usize, run as usize))?;
            done += run;
        }
        Ok(())
    }

    fn read_now(&self, offset: u64, into: &mut Buffers<'_>) -> Option<Result<(), Error>> {
        let len = into.len() as u64;
        self.check(Operation::Read, offset, len).ok()?;
        let _moving = self.moving.try_read().ok()?;
        let (mapping, run) = self.run(&mut self.lock(), offset, len.max(1), Operation::Read).ok()?;
        if run < len {
            return None;
        }
        match mapping {
            Mapping::Stored(at, _) => {
                let within = offset & ((1 << self.cluster_bits()) - 1);
                // An end of the file before the end of a cluster is for `read` to judge.
                self.file.read_list_now(at + within, into)?.ok().map(Ok)
            }
            Mapping::Zero(_) => Some(self.read_run(mapping, offset, into)),
            Mapping::Absent => match self.backing() {
                None => Some(self.read_run(mapping, offset, into)),
                Some(backing) if offset + len <= backing.info().size => backing.read_now(offset, into),
                Some(_) => None,
            },
            Mapping::Packed(..) => None,
        }
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        self.check(Operation::Write, offset, from.len() as u64)?;
        self.write_all(offset, &Source::Buffers(from), Operation::Write)?;
        if durability == Durability::AtCompletion { self.flush_all() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Error> {
        if self.file.is_writable() { self.flush_all() } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check(Operation::Discard, offset, len)?;
        if !self.can_unmap() {
            return Ok(());
        }
        let (first, end) = whole_clusters(offset, len, self.info().size, self.cluster_bits());
        self.unmap_clusters(first, end, Operation::Discard)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error> {
        let operation = Operation::WriteZeroes;
        self.check(operation, offset, len)?;
        let bits = self.cluster_bits();
        let (first, end) = whole_clusters(offset, len, self.info().size, bits);
        if unmap == Unmap::Allowed && self.can_unmap() && first < end {
            self.unmap_clusters(first, end, operation)?;
            let (start, stop) = (first << bits, (end << bits).min(offset + len));
            self.write_all(offset, &Source::Zeroes(start - offset), operation)?;
            self.write_all(stop, &Source::Zeroes(offset + len - stop), operation)?;
        } else {
            self.write_all(offset, &Source::Zeroes(len), operation)?;
        }
        if durability == Durability::AtCompletion { self.flush_all() } else { Ok(()) }
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Error> {
        self.check(Operation::Map, offset, len)?;
        if len == 0 {
            return Ok(Extent::data(0));
        }
        let (mapping, len) = self.run(&mut self.lock(), offset, len, Operation::Map)?;
        let within = offset & ((1 << self.cluster_bits()) - 1);
        let own = |content, file_offset| Extent { len, content, depth: 0, present: true, file_offset };
        Ok(match mapping {
            Mapping::Zero(_) => own(Content::Zeroes, None),
            Mapping::Stored(at, _) => own(Content::Data, Some(at + within)),
            Mapping::Packed(..) => own(Content::Data, None),
            Mapping::Absent => match self.backing() {
                None => Extent { present: false, ..own(Content::Zeroes, None) },
                Some(backing) => {
                    let below = extent_clamped(&*backing, offset, len)?;
                    Extent { depth: below.depth + 1, ..below }
                }
            },
        })
    }

    fn resize(&self, size: u64) -> Result<(), Error> {
        self.resize_to(size)
    }
}

/// The clusters that lie wholly within a range; the last one of the disk may be a part of one.
fn whole_clusters(offset: u64, len: u64, size: u64, bits: u32) -> (u64, u64) {
    let first = offset.div_ceil(1 << bits);
    let end = if offset + len == size { size.div_ceil(1 << bits) } else { (offset + len) >> bits };
    (first.min(end), end)
}

fn describe(header: &Header, snapshots: &[Snapshot]) -> Qcow2Info {
    Qcow2Info {
        version: header.version,
        cluster_size: header.cluster_size(),
        refcount_bits: 1 << header.refcount_order,
        compression: header.compression,
        lazy_refcounts: header.lazy_refcounts,
        is_dirty: header.is_dirty,
        is_corrupt: header.is_corrupt,
        backing: header.backing.clone(),
        snapshots: snapshots.to_vec(),
    }
}

fn fault(file: &HostFile, fault: HeaderFault) -> Error {
    match fault {
        HeaderFault::Bad(why) => file.damaged(Operation::Open, why),
        HeaderFault::Unsupported(why) => Error::new(ErrorKind::Unsupported, Operation::Open)
            .with_path(file.path())
            .with_detail(format!("{why}, which is not supported; convert it with the program that made it")),
    }
}

fn read_header(file: &HostFile) -> Result<(Header, Vec<Snapshot>), Error> {
    // The smallest cluster size first, so that no more is read than belongs to the header.
    let file_len = file.len()?;
    let mut bytes = vec![0; file_len.min(512) as usize];
    file.read(0, &mut bytes, Operation::Open)?;
    let bits = match bytes.get(20..24) {
        Some(_) => crate::bytes::be32(&bytes, 20).clamp(spec::CLUSTER_BITS_MIN, spec::CLUSTER_BITS_MAX),
        None => spec::CLUSTER_BITS_MIN,
    };
    bytes.resize(file_len.min(1 << bits) as usize, 0);
    file.read(0, &mut bytes, Operation::Open)?;
    let header = Header::parse(&bytes).map_err(|why| fault(file, why))?;
    let snapshots = read_snapshots(file, &header)?;
    Ok((header, snapshots))
}

fn read_snapshots(file: &HostFile, header: &Header) -> Result<Vec<Snapshot>, Error> {
    if header.snapshots == 0 {
        return Ok(Vec::new());
    }
    let left = file.len()?.saturating_sub(header.snapshots_at);
    let mut bytes = vec![0; left.min(spec::SNAPSHOT_TABLE_BYTES_MAX as u64) as usize];
    file.read(header.snapshots_at, &mut bytes, Operation::Open)?;
    let (mut snapshots, mut rest) = (Vec::new(), &bytes[..]);
    for _ in 0..header.snapshots {
        let (snapshot, len) = header::parse_snapshot(rest, header).map_err(|why| fault(file, why))?;
        snapshots.push(snapshot);
        rest = &rest[len.min(rest.len())..];
    }
    Ok(snapshots)
}

#[cfg(test)]
mod tests;
