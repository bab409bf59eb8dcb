//! A disk whose changes are kept apart, in a temporary file that is gone with the process.

use crate::{Buffers, Disk, DiskInfo, Durability, Error, Operation, Unmap};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The unit in which it is known where the present content is, in bytes.
const BLOCK: u64 = 4096;
/// So many bytes are moved at once.
const STEP: usize = 256 << 10;

/// A disk on top of another that stays as it is: a block that is written to lies in a temporary file from
/// then on. Nothing of it survives the process, so flushing it does nothing.
pub struct Scratch {
    base: Arc<dyn Disk>,
    changes: File,
    info: DiskInfo,
    /// One bit per block: set when the block lies in `changes`. Set after its bytes are there.
    changed: Box<[AtomicU64]>,
    /// Held while blocks move from `base` to `changes`, so that a half-written block is never seen.
    moving: Mutex<()>,
}

impl Scratch {
    /// A disk like `base`, writable. Changes go to a file without a name in `folder`.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn new(base: Arc<dyn Disk>, folder: &Path) -> Result<Scratch, Error> {
        let info = base.info();
        let failed = |e: std::io::Error| Error::from_io(Operation::Open, e).with_path(folder);
        let file = nameless(folder).map_err(failed)?;
        file.set_len(info.size).map_err(failed)?;
        let blocks = info.size.div_ceil(BLOCK);
        Ok(Scratch {
            base,
            info: DiskInfo { read_only: false, discard_granularity: Some(BLOCK as u32), ..info },
            changes: file,
            changed: memory::zeroed(blocks.div_ceil(64) as usize),
            moving: Mutex::new(()),
        })
    }

    fn is_changed(&self, block: u64) -> bool {
        self.changed[(block / 64) as usize].load(Ordering::Acquire) >> (block % 64) & 1 != 0
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes `[offset, offset + len)` by `work` in the temporary file. Blocks of which only a part is
    /// changed are brought there first.
    fn change(
        &self,
        offset: u64,
        len: u64,
        operation: Operation,
        work: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.info.check(operation, offset, len)?;
        let failed = |e: io::Error| Error::from_io(operation, e).with_range(offset, len);
        if len == 0 {
            return Ok(());
        }
        let end = offset + len;
        let blocks = offset / BLOCK..end.div_ceil(BLOCK);
        if blocks.clone().all(|block| self.is_changed(block)) {
            return work(&self.changes).map_err(failed);
        }
        let _moving = self.lock();
        let first_is_partial = !offset.is_multiple_of(BLOCK);
        let last_is_partial = !end.is_multiple_of(BLOCK) && end != self.info.size;
        let edges = [(first_is_partial, blocks.start), (last_is_partial, blocks.end - 1)];
        for (_, block) in edges.into_iter().filter(|(partial, _)| *partial) {
            if !self.is_changed(block) {
                let start = block * BLOCK;
                let mut bytes = vec![0; BLOCK.min(self.info.size - start) as usize];
                self.base.read(start, &mut Buffers::from_mut(&mut bytes))?;
                self.changes.write_all_at(&bytes, start).map_err(failed)?;
                self.mark(block);
            }
        }
        work(&self.changes).map_err(failed)?;
        blocks.for_each(|block| self.mark(block));
        Ok(())
    }

    fn read_changes(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len();
        let mut bytes = vec![0; len.min(STEP)];
        for at in (0..len).step_by(STEP) {
            let bytes = &mut bytes[..(len - at).min(STEP)];
            self.changes
                .read_exact_at(bytes, offset + at as u64)
                .map_err(|e| Error::from_io(Operation::Read, e).with_range(offset, len as u64))?;
            into.copy_from(at, bytes);
        }
        Ok(())
    }

    fn mark(&self, block: u64) {
        self.changed[(block / 64) as usize].fetch_or(1 << (block % 64), Ordering::Release);
    }
}

/// A file without a name.
fn nameless(folder: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        // A file system without: make one and take its name away.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
            let path = folder.join(format!(".arnia-scratch-{}-{:p}", std::process::id(), &options));
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        result => result,
    }
}

impl Disk for Scratch {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len() as u64;
        self.info.check(Operation::Read, offset, len)?;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            // As far as it is the same disk.
            let changed = self.is_changed(at / BLOCK);
            let mut to = (at / BLOCK + 1) * BLOCK;
            while to < end && self.is_changed(to / BLOCK) == changed {
                to += BLOCK;
            }
            let to = to.min(end);
            let mut part = into.part((at - offset) as usize, (to - at) as usize);
            match changed {
                true => self.read_changes(at, &mut part)?,
                false => self.base.read(at, &mut part)?,
            }
            at = to;
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, _: Durability) -> Result<(), Error> {
        let len = from.len();
        self.change(offset, len as u64, Operation::Write, |changes| {
            let mut bytes = vec![0; len.min(STEP)];
            for at in (0..len).step_by(STEP) {
                let bytes = &mut bytes[..(len - at).min(STEP)];
                from.copy_to(at, bytes);
                changes.write_all_at(bytes, offset + at as u64)?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.change(offset, len, Operation::Discard, |changes| zero(changes, offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Unmap, _: Durability) -> Result<(), Error> {
        self.change(offset, len, Operation::WriteZeroes, |changes| zero(changes, offset, len))
    }
}

/// Makes a range of the temporary file zero.
fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(file, hole, offset, len).is_ok() {
        return Ok(());
    }
    let zeroes = vec![0; STEP.min(len as usize)];
    for at in (0..len).step_by(STEP) {
        file.write_all_at(&zeroes[..(len - at).min(STEP as u64) as usize], offset + at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, ErrorKind, Raw};

    #[test]
    fn it_is_like_a_copy_and_the_base_stays() {
        const SIZE: usize = 10 * BLOCK as usize + 512;
        let path = std::env::temp_dir().join(format!("arnia-scratch-base-{}", std::process::id()));
        let content: Vec<u8> = (0..SIZE).map(|at| (at / 7) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let base = Arc::new(Raw::open(&path, Access::ReadOnly).unwrap());
        let disk = Scratch::new(base, &std::env::temp_dir()).unwrap();
        let mut model = content.clone();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        for round in 0..2000 {
            let offset = below(SIZE / 512) * 512;
            let len = (below(9) * 512).min(SIZE - offset);
            match below(4) {
                0 => {
                    let bytes = vec![round as u8; len];
                    disk.write(offset as u64, &Buffers::from_slice(&bytes), Durability::AtFlush).unwrap();
                    model[offset..offset + len].copy_from_slice(&bytes);
                }
                1 => {
                    disk.write_zeroes(offset as u64, len as u64, Unmap::Allowed, Durability::AtFlush)
                        .unwrap();
                    model[offset..offset + len].fill(0);
                }
                _ => {
                    let mut bytes = vec![0; len];
                    disk.read(offset as u64, &mut Buffers::from_mut(&mut bytes)).unwrap();
                    assert!(bytes == model[offset..offset + len], "round {round}: {len} at {offset}");
                }
            }
        }
        let beyond = disk.write(SIZE as u64, &Buffers::from_slice(&[0; 512]), Durability::AtFlush);
        assert_eq!(beyond.unwrap_err().kind(), ErrorKind::OutOfRange);
        assert!(std::fs::read(&path).unwrap() == content);
        std::fs::remove_file(&path).unwrap();
    }
}
