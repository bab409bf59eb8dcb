//! Disks in a snapshot: copied while the guest writes to them.
//!
//! A disk's first copy is made while the guest runs; what the guest changes meanwhile is noted and copied
//! again, the last of it while the guest stands still. Where the file system can share blocks between files
//! (reflink), the disk's file is cloned in that moment instead.

use super::checksum::is_zero;
use disk::{
    Buffers, Completion, Content, Disk, DiskInfo, Durability, Error, IoQueue, Request, RequestKind, Unmap,
};
use memory::PageSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// The unit in which changes are noted, in bytes.
pub const BLOCK: u64 = 64 << 10;

/// A disk that notes where it was changed, while it is asked to.
pub struct Tracked {
    disk: Arc<dyn Disk>,
    /// The file whose bytes are the disk's, if there is one.
    file: Option<File>,
    /// Cleared when the disk goes on with another file.
    has_file: AtomicBool,
    size: AtomicU64,
    log: Arc<Log>,
}

struct Log {
    on: AtomicBool,
    /// One bit per block. Replaced when the disk is resized, while nothing is noted.
    changed: RwLock<Box<[AtomicU64]>>,
}

impl Log {
    /// Notes a change, after it was made: whoever takes the log then either reads the new bytes or finds
    /// the note the next time.
    fn note(&self, offset: u64, len: u64) {
        if len == 0 || !self.on.load(Ordering::SeqCst) {
            return;
        }
        let changed = self.changed();
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            if let Some(word) = changed.get((block / 64) as usize) {
                word.fetch_or(1 << (block % 64), Ordering::SeqCst);
            }
        }
    }

    fn changed(&self) -> RwLockReadGuard<'_, Box<[AtomicU64]>> {
        self.changed.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bit for each block of a disk.
fn bits(size: u64) -> Box<[AtomicU64]> {
    memory::zeroed(size.div_ceil(BLOCK).div_ceil(64) as usize)
}

impl Tracked {
    /// Puts a disk under watch. `file` is a regular file whose bytes are the disk's, if there is one.
    pub fn new(disk: Arc<dyn Disk>, file: Option<File>) -> Tracked {
        let size = disk.info().size;
        Tracked {
            disk,
            file,
            has_file: AtomicBool::new(true),
            size: AtomicU64::new(size),
            log: Arc::new(Log { on: AtomicBool::new(false), changed: RwLock::new(bits(size)) }),
        }
    }

    /// The disk has another size. No snapshot is being made.
    pub fn resized(&self) {
        let size = self.disk.info().size;
        *self.log.changed.write().unwrap_or_else(PoisonError::into_inner) = bits(size);
        self.size.store(size, Ordering::SeqCst);
    }

    /// The bytes of the file are no longer the disk's: an image was put on top of it.
    pub fn forget_file(&self) {
        self.has_file.store(false, Ordering::SeqCst);
    }

    fn file(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.has_file.load(Ordering::SeqCst))
    }

    /// Begins to note changes, with nothing noted, or ends it. When it begins, no request is in flight.
    pub fn set_logging(&self, on: bool) {
        self.log.changed().iter().for_each(|word| word.store(0, Ordering::SeqCst));
        self.log.on.store(on, Ordering::SeqCst);
    }

    /// Takes the blocks that were changed.
    pub fn take_changed(&self) -> PageSet {
        let mut blocks = PageSet::new(self.size().div_ceil(BLOCK));
        for (index, word) in self.log.changed().iter().enumerate() {
            let mut rest = word.swap(0, Ordering::SeqCst);
            while rest != 0 {
                blocks.insert(index as u64 * 64 + u64::from(rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
        blocks
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    /// Whether the guest may write to it.
    pub fn is_writable(&self) -> bool {
        !self.disk.info().read_only
    }

    /// The blocks that may hold something else than zeroes.
    ///
    /// # Errors
    /// As the host fails.
    pub fn used(&self) -> io::Result<PageSet> {
        let mut blocks = PageSet::new(self.size().div_ceil(BLOCK));
        match self.file() {
            Some(file) => {
                for data in memory::data_ranges(file, 0..self.size()) {
                    let data = data?;
                    blocks.insert_range(data.start / BLOCK..data.end.div_ceil(BLOCK));
                }
            }
            None => {
                let mut at = 0;
                while at < self.size() {
                    let extent = self.disk.extent(at, self.size() - at).map_err(io::Error::other)?;
                    if extent.content == Content::Data {
                        blocks.insert_range(at / BLOCK..(at + extent.len).div_ceil(BLOCK));
                    }
                    // At least a byte, by contract; a disk that breaks it must not make this loop stand still.
                    at += extent.len.max(1);
                }
            }
        }
        Ok(blocks)
    }

    /// Makes `to` share all blocks with the disk's file; false where that is not possible.
    pub fn clone_to(&self, to: &File) -> bool {
        self.file().is_some_and(|from| {
            rustix::fs::ioctl_ficlone(to, from).is_ok() && to.set_len(self.size()).is_ok()
        })
    }

    /// Copies a run of blocks to their place in a file, leaving out what is zero in a file that is new
    /// there.
    ///
    /// # Errors
    /// As disk or host fail.
    pub fn copy(&self, blocks: Range<u64>, to: &File, is_new: bool, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.resize(BLOCK as usize, 0);
        for block in blocks {
            let at = block * BLOCK;
            let bytes = &mut buffer[..BLOCK.min(self.size() - at) as usize];
            self.disk.read(at, &mut Buffers::from_mut(bytes)).map_err(io::Error::other)?;
            if !is_new || !is_zero(bytes) {
                to.write_all_at(bytes, at)?;
            }
        }
        Ok(())
    }
}

impl Disk for Tracked {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        self.disk.read(offset, into)
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        let result = self.disk.write(offset, from, durability);
        self.log.note(offset, from.len() as u64);
        result
    }

    fn flush(&self) -> Result<(), Error> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        let result = self.disk.discard(offset, len);
        self.log.note(offset, len);
        result
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error> {
        let result = self.disk.write_zeroes(offset, len, unmap, durability);
        self.log.note(offset, len);
        result
    }

    fn io_queue(self: Arc<Self>, depth: usize) -> Box<dyn IoQueue> {
        let (queue, log) = (self.disk.clone().io_queue(depth), self.log.clone());
        Box::new(TrackedQueue { queue, log, changes: Vec::new() })
    }
}

/// A queue that notes what its requests have changed.
struct TrackedQueue {
    queue: Box<dyn IoQueue>,
    log: Arc<Log>,
    /// Token, offset and length of what is in flight.
    changes: Vec<(u64, u64, u64)>,
}

impl IoQueue for TrackedQueue {
    fn submit(&mut self, request: Request) {
        let len = match request.kind {
            RequestKind::Read | RequestKind::Flush => None,
            RequestKind::Write(_) => Some(request.buffers.len() as u64),
            RequestKind::Discard(len) | RequestKind::WriteZeroes(len, ..) => Some(len),
        };
        if let Some(len) = len {
            self.changes.push((request.token, request.offset, len));
        }
        self.queue.submit(request);
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn complete(&mut self) -> Option<Completion> {
        let completion = self.queue.complete()?;
        if let Some(index) = self.changes.iter().position(|change| change.0 == completion.token) {
            let (_, offset, len) = self.changes.swap_remove(index);
            // Failed ones, too: they may have changed a part.
            self.log.note(offset, len);
        }
        Some(completion)
    }

    fn room(&self) -> usize {
        self.queue.room()
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.completion_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use disk::{Access, Raw};

    #[test]
    fn changes_are_noted_by_whatever_way_they_come() {
        let path = std::env::temp_dir().join(format!("arnia-tracked-{}", std::process::id()));
        File::create(&path).unwrap().set_len(20 * BLOCK + 512).unwrap();
        let disk = Arc::new(Tracked::new(
            Arc::new(Raw::open(&path, Access::ReadWrite).unwrap()),
            Some(File::open(&path).unwrap()),
        ));
        let write = |at: u64, len: usize| {
            disk.write(at, &Buffers::from_slice(&vec![5; len]), Durability::AtFlush).unwrap();
        };
        write(0, 512);
        assert!(disk.take_changed().is_empty(), "not asked for");
        disk.set_logging(true);
        write(BLOCK - 512, 1024);
        disk.discard(5 * BLOCK, 512).unwrap();
        disk.write_zeroes(20 * BLOCK, 512, Unmap::Keep, Durability::AtFlush).unwrap();
        let ram = Arc::new(memory::Ram::new(1 << 20).unwrap());
        let mut queue = (disk.clone() as Arc<dyn Disk>).io_queue(4);
        for (token, kind) in [(1, RequestKind::Read), (2, RequestKind::Write(Durability::AtFlush))] {
            let mut buffers = Buffers::guest(ram.clone());
            buffers.push(0x1000, 512).unwrap();
            queue.submit(Request { token, kind, offset: (8 + token) * BLOCK, buffers });
        }
        queue.kick();
        while queue.in_flight() > 0 {
            queue.complete();
        }
        assert_eq!(disk.take_changed().iter().collect::<Vec<_>>(), [0, 1, 5, 10, 20]);
        assert!(disk.take_changed().is_empty());
        let copy = path.with_extension("copy");
        let to = File::options().read(true).write(true).create(true).truncate(true).open(&copy).unwrap();
        to.set_len(disk.size()).unwrap();
        for run in disk.used().unwrap().runs() {
            disk.copy(run, &to, true, &mut Vec::new()).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&copy).unwrap();
    }
}
