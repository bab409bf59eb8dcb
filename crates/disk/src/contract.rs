use crate::io_queue::{BlockingQueue, IoQueue};
use crate::pool::PoolQueue;
use crate::{Buffers, Error, ErrorKind, Operation};
use std::sync::Arc;

/// Facts about a disk. Only the size may change while the disk is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in bytes, a multiple of [`SECTOR_SIZE`](crate::SECTOR_SIZE).
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The unit that a guest should not go below, in bytes: a power of two, at least 512. Smaller
    /// accesses work, but may cost a read-modify-write.
    pub logical_block_size: u32,
    /// The unit that the storage writes atomically, in bytes: at least the logical one.
    pub physical_block_size: u32,
    /// Unit and alignment of useful discards in bytes; `None` when discarding frees nothing.
    pub discard_granularity: Option<u32>,
}

impl DiskInfo {
    /// Checks that `len` bytes at `offset` lie within the disk and, for an operation that changes it,
    /// that it may be changed.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] or [`ErrorKind::ReadOnly`].
    pub fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), Error> {
        let changes = matches!(operation, Operation::Write | Operation::Discard | Operation::WriteZeroes);
        if changes && self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, operation).with_range(offset, len));
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::new(ErrorKind::OutOfRange, operation).with_range(offset, len)),
        }
    }
}

/// When a change must be safe from a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When a later [`Disk::flush`] has succeeded: a write-back cache.
    AtFlush,
    /// When the operation itself reports success: forced unit access (FUA), a write-through cache.
    AtCompletion,
}

/// Whether storage may be freed by an operation that makes a range read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// The range stays allocated: later writes to it cannot run out of space.
    Keep,
    /// The range may be freed.
    Allowed,
}

/// What a stretch of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that are stored somewhere.
    Data,
    /// Zeroes that nobody has to read to know.
    Zeroes,
}

/// A stretch of a disk that is alike all through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length in bytes.
    pub len: u64,
    /// What it holds.
    pub content: Content,
    /// Which layer says so: 0 is the disk itself, 1 its backing file, and so on.
    pub depth: u32,
    /// Whether that layer has an entry for it; if not, the whole chain has none and it is zero.
    pub present: bool,
    /// Where its first byte lies in the file of that layer, if it lies there as it is.
    pub file_offset: Option<u64>,
}

impl Extent {
    /// Data of the disk itself, about which no more is known.
    pub fn data(len: u64) -> Extent {
        Extent { len, content: Content::Data, depth: 0, present: true, file_offset: None }
    }
}

/// A disk: `info().size` bytes that can be read and written at any offset.
///
/// All operations block until done and may be called from several threads at once. Operations on ranges
/// that do not overlap do not disturb each other. Of overlapping ones that are not ordered by the
/// caller (one begins before the other has returned), each 512-byte sector has the content of one of
/// them.
///
/// **Success is whole**: an operation that returns `Ok` did all of its range. One that fails may have
/// done any part of it, and the range's content is then old or new, sector by sector.
pub trait Disk: Send + Sync + 'static {
    /// The disk's facts, as they are now.
    fn info(&self) -> DiskInfo;

    /// Fills `into` from `offset` on. Reports the written guest memory itself.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`], or as the host fails.
    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error>;

    /// [`Disk::read`] if that is possible without waiting for storage; else `None`, and the content of `into` is
    /// not to be relied on. This default never is.
    fn read_now(&self, offset: u64, into: &mut Buffers<'_>) -> Option<Result<(), Error>> {
        let _ = (offset, into);
        None
    }

    /// Writes `from` at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`], [`ErrorKind::ReadOnly`], or as the host fails.
    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error>;

    /// Makes every change that was reported done before this call began survive a crash of the host.
    /// Until then a crash may lose any of them, in any order, sector by sector. A crash (or `kill -9`) of
    /// this process alone loses none of a raw disk; an image with tables of its own may lose what was
    /// written to new places, but stays sound. After a flush has failed, nothing is known about the changes
    /// since the last successful one: the caller must not conclude from a later success that they are
    /// safe.
    ///
    /// # Errors
    /// As the host fails. A read-only disk has nothing to flush and succeeds.
    fn flush(&self) -> Result<(), Error>;

    /// Tells that the content of a range is no longer needed. It reads as zeroes or as before, and a
    /// disk that cannot free storage succeeds without doing anything.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`], [`ErrorKind::ReadOnly`], or as the host fails.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error>;

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`], [`ErrorKind::ReadOnly`], or as the host fails.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error>;

    /// Describes the stretch that begins at `offset` and is at most `len` bytes long: at least one byte
    /// of it, when `len` is not 0. This default knows nothing and says that all is data.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`], or as the host fails.
    fn extent(&self, offset: u64, len: u64) -> Result<Extent, Error> {
        self.info().check(Operation::Map, offset, len)?;
        Ok(Extent::data(len))
    }

    /// Changes the size, a multiple of [`SECTOR_SIZE`](crate::SECTOR_SIZE). What is new reads as zeroes;
    /// what lies beyond a smaller size is lost. Requests that reach beyond the new end fail from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the format or its file has a fixed size, [`ErrorKind::ReadOnly`],
    /// or as the host fails; the size is then as before.
    fn resize(&self, size: u64) -> Result<(), Error> {
        let _ = size;
        Err(Error::new(ErrorKind::Unsupported, Operation::Resize))
    }

    /// Makes beforehand what `number` queues will need of the host. Called before the process gives up rights;
    /// without it, or where the host refuses, queues work in another way. This default needs nothing.
    fn prepare_queues(&self, number: usize) {
        let _ = number;
    }

    /// Creates a queue for up to `depth` requests at a time, to be used by one thread. This default has
    /// threads for what would wait.
    fn io_queue(self: Arc<Self>, depth: usize) -> Box<dyn IoQueue> {
        match PoolQueue::new(self.clone(), depth) {
            Ok(queue) => Box::new(queue),
            Err(_) => Box::new(BlockingQueue::new(self, depth)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_access_are_checked_without_overflow() {
        let mut info = DiskInfo {
            size: 4096,
            read_only: false,
            logical_block_size: 512,
            physical_block_size: 512,
            discard_granularity: None,
        };
        for (offset, len, fits) in [
            (0, 4096, true),
            (4096, 0, true),
            (0, 4097, false),
            (4095, 2, false),
            (u64::MAX, 1, false),
            (1, u64::MAX, false),
        ] {
            let kind = info.check(Operation::Read, offset, len).err().map(|e| e.kind());
            assert_eq!(kind, (!fits).then_some(ErrorKind::OutOfRange), "{offset} {len}");
        }
        info.read_only = true;
        assert!(info.check(Operation::Read, 0, 1).is_ok());
        assert!(info.check(Operation::Flush, 0, 0).is_ok());
        for operation in [Operation::Write, Operation::Discard, Operation::WriteZeroes] {
            assert_eq!(info.check(operation, 0, 1).unwrap_err().kind(), ErrorKind::ReadOnly);
        }
    }
}
