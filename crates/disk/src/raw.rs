//! The raw format: the file's bytes are the disk's bytes.

use crate::{Buffers, Disk, DiskInfo, Durability, Error, ErrorKind, Operation, SECTOR_SIZE, Unmap, lock};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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
/// it is opened; bytes after the last whole sector are not part of the disk.
pub struct Raw {
    file: File,
    path: PathBuf,
    info: DiskInfo,
    /// Cleared when the host turns out not to have it.
    has_punch_hole: AtomicBool,
    has_zero_range: AtomicBool,
    has_dsync_flag: AtomicBool,
}

impl Raw {
    /// Opens a regular file or block device and locks it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Permission`], [`ErrorKind::ReadOnly`] (a file system that
    /// is), [`ErrorKind::LockedByOther`], [`ErrorKind::BadFormat`] when it is neither file nor block
    /// device or has not even one sector.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Raw, Error> {
        let path = path.as_ref();
        let write = access == Access::ReadWrite;
        let failed = |error: io::Error| Error::from_io(Operation::Open, error).with_path(path);
        let file = File::options().read(true).write(write).open(path).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EISDIR) => Error::new(ErrorKind::BadFormat, Operation::Open)
                    .with_path(path)
                    .with_detail("it is a directory; give the path of an image file"),
                _ => failed(error),
            }
        })?;
        let bad = |detail: &str| {
            Error::new(ErrorKind::BadFormat, Operation::Open).with_path(path).with_detail(detail)
        };
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(bad("it is neither a file nor a block device"));
        }
        lock::lock(&file, write).map_err(|error| error.with_path(path))?;
        // The end of a block device is found by seeking; its metadata has no length.
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        let size = end & !(SECTOR_SIZE - 1);
        if size == 0 {
            return Err(bad("it is smaller than one sector of 512 bytes"));
        }
        let (logical, physical) = if kind.is_block_device() {
            let logical = rustix::fs::ioctl_blksszget(&file).unwrap_or(512);
            (logical, rustix::fs::ioctl_blkpbszget(&file).unwrap_or(logical))
        } else {
            // Files take any sector; the page is what the host's cache writes back.
            (512, 4096)
        };
        let logical_block_size = if logical.is_power_of_two() { logical.clamp(512, 1 << 16) } else { 512 };
        let info = DiskInfo {
            size,
            read_only: !write,
            logical_block_size,
            physical_block_size: physical.max(logical_block_size),
            discard_granularity: write.then_some(4096),
        };
        Ok(Raw {
            file,
            path: path.to_owned(),
            info,
            has_punch_hole: AtomicBool::new(true),
            has_zero_range: AtomicBool::new(true),
            has_dsync_flag: AtomicBool::new(true),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, operation: Operation, offset: u64, len: u64, source: io::Error) -> Error {
        Error::from_io(operation, source).with_path(&self.path).with_range(offset, len)
    }

    fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), Error> {
        self.info.check(operation, offset, len).map_err(|error| error.with_path(&self.path))
    }

    /// Writes from memory of this process, in pieces of a zeroed page block: the last resort.
    fn write_zeroes_plainly(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
        let mut done = 0;
        while done < len {
            let here = (len - done).min(ZEROES.len() as u64) as usize;
            match rustix::io::pwrite(&self.file, &ZEROES[..here], offset + done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// `fallocate` unless the host is known not to have this mode; whether it was done.
    fn try_fallocate(
        &self,
        has: &AtomicBool,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        if !has.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            return match fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    has.store(false, Ordering::Relaxed);
                    Ok(false)
                }
                // A block device whose blocks this range is not aligned to.
                Err(Errno::INVAL) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// Repeats a vectored system call until all of `buffers` is moved. `call` gets the stretches that are
/// left (1024 at most, UIO_MAXIOV) and how many bytes are done.
fn move_all(buffers: &Buffers<'_>, mut call: impl FnMut(&[libc::iovec], usize) -> isize) -> io::Result<()> {
    const IOVECS_MAX: usize = 1024;
    let mut done = 0;
    // What is left after a call that did not move all; nearly always the first one does.
    let mut rest = Vec::new();
    while done < buffers.len() {
        let list = if done == 0 { buffers.iovecs() } else { &rest[..] };
        match call(&list[..list.len().min(IOVECS_MAX)], done) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved if moved > 0 => {
                done += moved as usize;
                if done < buffers.len() {
                    rest = buffers.iovecs_from(done);
                }
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Disk for Raw {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn read(&self, offset: u64, into: &mut Buffers<'_>) -> Result<(), Error> {
        let len = into.len();
        self.check(Operation::Read, offset, len as u64)?;
        assert!(into.is_fillable(), "a list to be filled");
        let fd = self.file.as_raw_fd();
        let result = move_all(into, |list, done| {
            // SAFETY: the list describes memory that is alive and may be written (checked above).
            unsafe { libc::preadv(fd, list.as_ptr(), list.len() as _, (offset + done as u64) as _) }
        });
        // Also after a failure: part of it may have been filled.
        into.report_filled(0, len);
        result.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Io, Operation::Read)
                .with_path(&self.path)
                .with_range(offset, len as u64)
                .with_detail("the file has become shorter than it was when it was opened"),
            _ => self.failed(Operation::Read, offset, len as u64, error),
        })
    }

    fn write(&self, offset: u64, from: &Buffers<'_>, durability: Durability) -> Result<(), Error> {
        let len = from.len() as u64;
        self.check(Operation::Write, offset, len)?;
        let failed = |error| self.failed(Operation::Write, offset, len, error);
        let fd = self.file.as_raw_fd();
        if durability == Durability::AtCompletion && self.has_dsync_flag.load(Ordering::Relaxed) {
            let result = move_all(from, |list, done| {
                let at = (offset + done as u64) as _;
                // SAFETY: the list describes memory that is alive.
                unsafe { libc::pwritev2(fd, list.as_ptr(), list.len() as _, at, libc::RWF_DSYNC) }
            });
            match result {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    self.has_dsync_flag.store(false, Ordering::Relaxed);
                }
                result => return result.map_err(failed),
            }
        }
        move_all(from, |list, done| {
            // SAFETY: the list describes memory that is alive.
            unsafe { libc::pwritev(fd, list.as_ptr(), list.len() as _, (offset + done as u64) as _) }
        })
        .map_err(failed)?;
        if durability == Durability::AtCompletion {
            rustix::fs::fdatasync(&self.file).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        if self.info.read_only {
            return Ok(());
        }
        // The size never changes, so data is all there is to make durable.
        rustix::fs::fdatasync(&self.file)
            .map_err(|error| Error::from_io(Operation::Flush, error.into()).with_path(&self.path))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.check(Operation::Discard, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.try_fallocate(&self.has_punch_hole, FallocateFlags::PUNCH_HOLE, offset, len)
            .map(drop)
            .map_err(|error| self.failed(Operation::Discard, offset, len, error))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: Unmap, durability: Durability) -> Result<(), Error> {
        self.check(Operation::WriteZeroes, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let failed = |error| self.failed(Operation::WriteZeroes, offset, len, error);
        let punch = (&self.has_punch_hole, FallocateFlags::PUNCH_HOLE);
        let zero = (&self.has_zero_range, FallocateFlags::ZERO_RANGE);
        let ways = match unmap {
            Unmap::Allowed => &[punch, zero][..],
            Unmap::Keep => &[zero][..],
        };
        let mut done = false;
        for (has, mode) in ways {
            done = done || self.try_fallocate(has, *mode, offset, len).map_err(failed)?;
        }
        if !done {
            self.write_zeroes_plainly(offset, len).map_err(failed)?;
        }
        if durability == Durability::AtCompletion {
            rustix::fs::fdatasync(&self.file).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
