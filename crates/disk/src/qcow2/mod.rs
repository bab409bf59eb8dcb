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
mod flushing;
mod header;
mod meta;
mod moving;
mod opening;
mod packed;
mod reading;
mod resize;
mod spec;
mod writing;

pub use check::{CheckReport, Repair};
pub use create::CreateOptions;
pub use header::{Backing, Compression, Snapshot};

use crate::file::HostFile;
use crate::{Buffers, Content, Disk, DiskInfo, Durability, Error, Extent, Operation, Unmap};
use meta::{Mapping, Meta};
use opening::describe;
pub(crate) use packed::PackedEnd;
use packed::Unpacked;
pub(crate) use reading::{extent_clamped, read_clamped};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use writing::{Source, whole_clusters};

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

    fn failed(&self, operation: Operation, offset: u64, len: usize, source: io::Error) -> Error {
        self.file.failed(operation, source).with_range(offset, len as u64)
    }
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

#[cfg(test)]
mod tests;
