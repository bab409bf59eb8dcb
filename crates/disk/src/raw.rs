//! The raw format: the file's bytes are the disk's bytes.

use crate::file::HostFile;
use crate::io_queue::{BlockingQueue, IoQueue};
use crate::pool::PoolQueue;
use crate::ring::{Ring, RingQueue};
use crate::{
    Buffers, Content, Disk, DiskInfo, Durability, Error, ErrorKind, Extent, Operation, Progress, SECTOR_SIZE,
    Unmap,
};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How to open a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read only; other readers may have it open too.
    ReadOnly,
    /// To read and write; nobody else may have it open.
    ReadWrite,
}

/// A raw disk image or a block device of the host.
///
/// Data goes through the host's page cache straight to and from the guest's RAM. The size is taken when
/// it is opened. A file that ends within a sector ends with zeroes up to that sector's end: they are read so,
/// and a file that is opened to be written is made longer by them.
pub struct Raw {
    file: HostFile,
    size: AtomicU64,
    /// The file's length in bytes, if it ends within the last sector.
    cut_at: Option<u64>,
    /// Held while the size changes.
    resizing: Mutex<()>,
    logical_block_size: u32,
    physical_block_size: u32,
    guard_header: bool,
    /// For queues to come.
    rings: Mutex<Vec<Ring>>,
}

impl Raw {
    /// Opens a regular file or block device and locks it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Permission`], [`ErrorKind::ReadOnly`] (a file system that
    /// is), [`ErrorKind::LockedByOther`], [`ErrorKind::BadFormat`] when it is neither file nor block
    /// device or has not even one sector, or as the host refuses to make it longer.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Raw, Error> {
        Raw::new(HostFile::open(path.as_ref(), access)?)
    }

    /// Takes a file that is open.
    pub(crate) fn new(file: HostFile) -> Result<Raw, Error> {
        let len = file.len()?;
        if len < SECTOR_SIZE {
            return Err(file.damaged(Operation::Open, "it is smaller than one sector of 512 bytes"));
        }
        // As QEMU does it: what the last sector has is not lost.
        let size = len.next_multiple_of(SECTOR_SIZE);
        let cut_at = (size != len && !file.is_writable()).then_some(len);
        if size != len && file.is_writable() {
            file.set_len(size, Operation::Open)?;
        }
        let (logical, physical) = if file.is_block_device() {
            let logical = rustix::fs::ioctl_blksszget(file.file()).unwrap_or(512);
            (logical, rustix::fs::ioctl_blkpbszget(file.file()).unwrap_or(logical))
        } else {
            // Files take any sector; the page is what the host's cache writes back.
            (512, 4096)
        };
        let logical_block_size = if logical.is_power_of_two() { logical.clamp(512, 1 << 16) } else { 512 };
        Ok(Raw {
            file,
            size: AtomicU64::new(size),
            cut_at,
            resizing: Mutex::new(()),
            logical_block_size,
            physical_block_size: physical.max(logical_block_size),
            guard_header: false,
            rings: Mutex::default(),
        })
    }

    /// Refuses writes that would make the file look like another format to those who judge by its first
    /// bytes. For files whose format nobody has named: see [`Format::probe`](crate::Format::probe).
    pub(crate) fn guarding_header(mut self) -> Raw {
        self.guard_header = true;
        self
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Frees the storage of everything that is zero.
    pub(crate) fn free_zeroes(&self, progress: &Progress) -> Result<(), Error> {
        const STEP: u64 = 1 << 20;
        let size = self.info().size;
        progress.begin(size);
        let mut bytes = vec![0; STEP as usize];
        let mut at = 0;
        while at < size {
            progress.check(Operation::Convert)?;
            let (stored, len) = self.file.stored(at, STEP.min(size - at));
            if stored {
                let bytes = &mut bytes[..len as usize];
                self.file.read(at, bytes, Operation::Convert)?;
                let zeroes = bytes.chunks(4096).enumerate().filter(|(_, block)| crate::bytes::is_zero(block));
                for (index, block) in zeroes {
                    let start = at + index as u64 * 4096;
                    self.discard(start, block.len() as u64)?;
                }
            }
            progress.advance(len);
            at += len;
        }
        self.flush()
    }

    /// Takes back a ring whose queue is gone.
    pub(crate) fn keep_ring(&self, ring: Ring) {
        self.rings().push(ring);
    }

    fn rings(&self) -> MutexGuard<'_, Vec<Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for what the host said.
    pub(crate) fn host_failed(&self, operation: Operation, source: io::Error) -> Error {
        self.file.failed(operation, source)
    }

    /// What became of a read. One that reached beyond a file which ends within a sector is done again as far as
    /// there is something; the rest is zero.
    fn finish_read(&self, offset: u64, into: &mut Buffers<'_>, result: io::Result<()>) -> Result<(), Error> {
        let len = into.len();
        let cut_at = self.cut_at.filter(|cut_at| offset + len as u64 > *cut_at);
        match (result, cut_at) {
            (Err(error), Some(cut_at)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let there = cut_at.saturating_sub(offset) as usize;
                if there > 0 {
                    self.file
                        .read_list(offset, &mut into.part(0, there))
                        .map_err(|error| self.read_failed(offset, there as u64, error))?;
                }
                into.zero(there, len - there);
                Ok(())
            }
            (result, _) => result.map_err(|error| self.read_failed(offset, len as u64, error)),
        }
    }

    fn read_failed(&self, offset: u64, len: u64, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Io, Operation::Read)
                .with_path(self.path())
                .with_range(offset, len)
                .with_detail("the file has become shorter than it was when it was opened"),
            _ => self.failed(Operation::Read, offset, len, error),
        }
    }

    fn failed(&self, operation: Operation, offset: u64, len: u64, source: io::Error) -> Error {
        self.file.failed(operation, source).with_range(offset, len)
    }

    fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), Error> {
        self.info().check(operation, offset, len).map_err(|error| error.with_path(self.path()))
    }

    /// See [`Raw::guarding_header`].
    fn check_header(&self, offset: u64, from: &Buffers<'_>) -> Result<(), Error> {
        let guarded = crate::open::PROBE_LEN as u64;
        if !self.guard_header || offset >= guarded || from.is_empty() {
            return Ok(());
        }
        let mut head = [0; crate::open::PROBE_LEN];
        self.file.read_padded(0, &mut head, Operation::Write)?;
        let here = from.len().min((guarded - offset) as usize);
        from.copy_to(0, &mut head[offset as usize..][..here]);
        match crate::open::Format::of_header(&head) {
            None => Ok(()),
            Some(format) => Err(Error::new(ErrorKind::ReadOnly, Operation::Write)
                .with_path(self.path())
                .with_range(offset, from.len() as u64)
                .with_detail(format!(
                    "its format was guessed to be raw, and with this it would be taken for {format} next \
                     time; say format=raw to allow it"
                ))),
        }
    }
}

impl Disk for Raw {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            size: self.size.load(Ordering::Acquire),
            read_only: !self.file.is_writable(),
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            discard_granularity: self.file.is_writable().then_some(4096),
        }
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len() as u64;
        self.check(Operation::Read, offset, len)?;
        let result = self.file.read_list(offset, into);
        self.finish_read(offset, into, result)
    }

    fn read_now(&self, offset: u64, into: &mut Buffers<'_>) -> Option<Result<(), Error>> {
        let len = into.len() as u64;
        if let Err(error) = self.check(Operation::Read, offset, len) {
            return Some(Err(error));
        }
        let result = self.file.read_list_now(offset, into)?;
        Some(self.finish_read(offset, into, result))
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        let len = from.len() as u64;
        self.check(Operation::Write, offset, len)?;
        self.check_header(offset, from)?;
        self.file
            .write_list(offset, from, durability)
            .map_err(|error| self.failed(Operation::Write, offset, len, error))
    }

    fn flush(&self) -> Result<(), Error> {
        if !self.file.is_writable() {
            return Ok(());
        }
        self.file.sync(Operation::Flush)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check(Operation::Discard, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.file
            .punch_hole(offset, len)
            .map(drop)
            .map_err(|error| self.failed(Operation::Discard, offset, len, error))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error> {
        self.check(Operation::WriteZeroes, offset, len)?;
        self.file
            .write_zeroes(offset, len, unmap == Unmap::Allowed)
            .map_err(|error| self.failed(Operation::WriteZeroes, offset, len, error))?;
        if durability == Durability::AtCompletion && len > 0 {
            self.file.sync(Operation::WriteZeroes)?;
        }
        Ok(())
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Error> {
        self.check(Operation::Map, offset, len)?;
        let (stored, len) = self.file.stored(offset, len);
        let content = if stored { Content::Data } else { Content::Zeroes };
        Ok(Extent { len, content, depth: 0, present: true, file_offset: Some(offset) })
    }

    fn prepare_queues(&self, number: usize) {
        let rings = (0..number).map_while(|_| Ring::new(self.file.file()).ok());
        self.rings().extend(rings);
    }

    fn io_queue(self: Arc<Self>, depth: usize) -> Box<dyn IoQueue> {
        let ring = self.rings().pop();
        if let Some(ring) = ring {
            return Box::new(RingQueue::new(self, ring, depth));
        }
        match PoolQueue::new(self.clone(), depth) {
            Ok(queue) => Box::new(queue),
            Err(_) => Box::new(BlockingQueue::new(self, depth)),
        }
    }

    fn resize(&self, size: u64) -> Result<(), Error> {
        let fault = |kind| Error::new(kind, Operation::Resize).with_path(self.path());
        if !self.file.is_writable() {
            return Err(fault(ErrorKind::ReadOnly));
        }
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(fault(ErrorKind::Unsupported).with_detail("a size is a multiple of 512 bytes"));
        }
        let _resizing = self.resizing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.file.is_block_device() {
            // It may have been made larger elsewhere; no more than that can be done here.
            if size > self.file.len()? {
                return Err(fault(ErrorKind::Unsupported).with_detail(
                    "it is a block device of the host and has no more room; enlarge that first",
                ));
            }
        } else {
            self.file.set_len(size, Operation::Resize)?;
            rustix::fs::fsync(self.file.file()).map_err(|e| self.file.failed(Operation::Resize, e.into()))?;
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
