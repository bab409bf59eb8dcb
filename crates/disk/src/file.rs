//! A file or block device of the host, as formats use it.

use crate::{Access, Buffers, Durability, Error, ErrorKind, Operation, is_layer, lock};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A file or block device that is open and locked. All operations take positions and may be called from
/// several threads.
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    is_block_device: bool,
    /// Cleared by [`HostFile::freeze`].
    is_writable: AtomicBool,
    /// Cleared when the host turns out not to have it.
    has_punch_hole: AtomicBool,
    has_zero_range: AtomicBool,
    has_dsync_flag: AtomicBool,
    has_nowait_flag: AtomicBool,
    /// Cleared while the file is of no use to anybody yet.
    syncs: AtomicBool,
}

impl HostFile {
    /// Opens a regular file or block device and locks it: shared to read, alone to write.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Permission`], [`ErrorKind::ReadOnly`] (a file system that
    /// is), [`ErrorKind::LockedByOther`], [`ErrorKind::BadFormat`] when it is neither file nor block
    /// device.
    pub(crate) fn open(path: &Path, access: Access) -> Result<HostFile, Error> {
        // By whatever name: snapshots, clones and machines have links to it, and none of them may see it change.
        let is_kept = || is_layer(path) || path.canonicalize().is_ok_and(|real| is_layer(&real));
        if access == Access::ReadWrite && is_kept() {
            return Err(Error::new(ErrorKind::Forbidden, Operation::Open).with_path(path).with_detail(
                "it is a layer that snapshots and clones may share, and is never written to; to have all in one image, use \
                 `arnia disk flatten` on the image that stands on it, or `arnia disk convert`",
            ));
        }
        let file = HostFile::open_any(path, access)?;
        lock::lock(&file.file, access == Access::ReadWrite).map_err(|error| error.with_path(path))?;
        Ok(file)
    }

    /// Opens a file to look at it, though somebody else may be writing to it.
    pub(crate) fn open_unlocked(path: &Path) -> Result<HostFile, Error> {
        HostFile::open_any(path, Access::ReadOnly)
    }

    fn open_any(path: &Path, access: Access) -> Result<HostFile, Error> {
        let failed = |error: io::Error| Error::from_io(Operation::Open, error).with_path(path);
        // A FIFO would otherwise make the program wait for a writer.
        let file = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EISDIR) => bad(path, "it is a directory; give the path of an image file"),
                _ => failed(error),
            })?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(bad(path, "it is neither a file nor a block device"));
        }
        Ok(HostFile::new(file, path, access, kind.is_block_device()))
    }

    /// Creates a file and locks it.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`], or as the host refuses.
    pub(crate) fn create(path: &Path) -> Result<HostFile, Error> {
        let file = File::options().read(true).write(true).create_new(true).open(path).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => Error::new(ErrorKind::Exists, Operation::Create),
                _ => Error::from_io(Operation::Create, error),
            }
            .with_path(path)
        })?;
        lock::lock(&file, true).map_err(|error| error.with_path(path))?;
        Ok(HostFile::new(file, path, Access::ReadWrite, false))
    }

    /// Takes a file that is open; it is not locked.
    pub(crate) fn new(file: File, path: &Path, access: Access, is_block_device: bool) -> HostFile {
        HostFile {
            file,
            path: path.to_owned(),
            is_block_device,
            is_writable: AtomicBool::new(access == Access::ReadWrite),
            has_punch_hole: AtomicBool::new(true),
            has_zero_range: AtomicBool::new(true),
            has_dsync_flag: AtomicBool::new(true),
            has_nowait_flag: AtomicBool::new(true),
            syncs: AtomicBool::new(true),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable.load(Ordering::Acquire)
    }

    /// From now on the file is only read, and other readers may have it too.
    pub(crate) fn freeze(&self) -> Result<(), Error> {
        self.is_writable.store(false, Ordering::Release);
        lock::share(&self.file).map_err(|error| error.with_path(&self.path))
    }

    /// The file has another name now.
    pub(crate) fn renamed(mut self, path: &Path) -> HostFile {
        self.path = path.to_owned();
        self
    }

    pub(crate) fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Which file it is, whatever its name.
    pub(crate) fn identity(&self) -> Result<(u64, u64), Error> {
        let metadata = self.file.metadata().map_err(|e| self.failed(Operation::Open, e))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Its length in bytes. The end of a block device is found by seeking; its metadata has no length.
    pub(crate) fn len(&self) -> Result<u64, Error> {
        if self.is_block_device {
            return rustix::fs::seek(&self.file, SeekFrom::End(0))
                .map_err(|error| self.failed(Operation::Open, error.into()));
        }
        let metadata = self.file.metadata().map_err(|e| self.failed(Operation::Open, e))?;
        Ok(metadata.len())
    }

    /// How many bytes it occupies on the host.
    pub(crate) fn allocated(&self) -> Result<u64, Error> {
        if self.is_block_device {
            return self.len();
        }
        let metadata = self.file.metadata().map_err(|e| self.failed(Operation::Open, e))?;
        Ok(metadata.blocks() * 512)
    }

    pub(crate) fn set_len(&self, len: u64, operation: Operation) -> Result<(), Error> {
        self.file.set_len(len).map_err(|error| self.failed(operation, error))
    }

    /// The error for what the host said, with the file's name.
    pub(crate) fn failed(&self, operation: Operation, source: io::Error) -> Error {
        Error::from_io(operation, source).with_path(&self.path)
    }

    /// The error for something in the file that is not as it should be.
    pub(crate) fn damaged(&self, operation: Operation, detail: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadFormat, operation).with_path(&self.path).with_detail(detail)
    }

    /// Fills `into` from `at` on.
    ///
    /// # Errors
    /// As the host fails; `UnexpectedEof` where the file ends.
    pub(crate) fn read_list(&self, at: u64, into: &mut Buffers<'_>) -> io::Result<()> {
        assert!(into.is_fillable(), "a list to be filled");
        let fd = self.file.as_raw_fd();
        let len = into.len();
        let result = move_all(into, usize::MAX, |list, done| {
            // SAFETY: the list describes memory that is alive and may be written (checked above).
            unsafe { libc::preadv(fd, list.as_ptr(), list.len() as _, (at + done as u64) as _) }
        });
        // Also after a failure: part of it may have been filled.
        into.report_filled(0, len);
        result
    }

    /// [`HostFile::read_list`] if all of it lies in the host's page cache; else `None`. Where the host cannot
    /// tell, it waits.
    pub(crate) fn read_list_now(&self, at: u64, into: &mut Buffers<'_>) -> Option<io::Result<()>> {
        assert!(into.is_fillable(), "a list to be filled");
        let list = into.iovecs();
        if list.len() > IOVECS_MAX || list.is_empty() || !self.has_nowait_flag.load(Ordering::Relaxed) {
            return Some(self.read_list(at, into));
        }
        let (fd, flags) = (self.file.as_raw_fd(), libc::RWF_NOWAIT);
        // SAFETY: the list describes memory that is alive and may be written (checked above).
        let moved = unsafe { libc::preadv2(fd, list.as_ptr(), list.len() as _, at as _, flags) };
        if moved > 0 {
            into.report_filled(0, moved as usize);
        }
        if usize::try_from(moved) == Ok(into.len()) {
            return Some(Ok(()));
        }
        if moved < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
            self.has_nowait_flag.store(false, Ordering::Relaxed);
            return Some(self.read_list(at, into));
        }
        None
    }

    /// Fills `bytes` from `at` on.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8], operation: Operation) -> Result<(), Error> {
        let len = bytes.len() as u64;
        self.read_list(at, &mut Buffers::from_mut(bytes)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(
                operation,
                format!("it ends before byte {}: it was cut off", at.saturating_add(len)),
            ),
            _ => self.failed(operation, error),
        })
    }

    /// Fills `bytes` from `at` on, with zeroes where the file has ended.
    pub(crate) fn read_padded(&self, at: u64, bytes: &mut [u8], operation: Operation) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pread(&self.file, &mut bytes[done..], at + done as u64) {
                Ok(0) => {
                    bytes[done..].fill(0);
                    break;
                }
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(operation, error.into())),
            }
        }
        Ok(())
    }

    /// Writes `from` at `at`; with [`Durability::AtCompletion`] it is safe from then on.
    pub(crate) fn write_list(&self, at: u64, from: &Buffers<'_>, durability: Durability) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        if durability == Durability::AtCompletion && self.has_dsync_flag.load(Ordering::Relaxed) {
            let result = move_all(from, usize::MAX, |list, done| {
                let at = (at + done as u64) as _;
                // SAFETY: the list describes memory that is alive.
                unsafe { libc::pwritev2(fd, list.as_ptr(), list.len() as _, at, libc::RWF_DSYNC) }
            });
            match result {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    self.has_dsync_flag.store(false, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        move_all(from, WRITE_STEP, |list, done| {
            // SAFETY: the list describes memory that is alive.
            unsafe { libc::pwritev(fd, list.as_ptr(), list.len() as _, (at + done as u64) as _) }
        })?;
        if durability == Durability::AtCompletion {
            rustix::fs::fdatasync(&self.file)?;
        }
        Ok(())
    }

    /// Writes `bytes` at `at`.
    pub(crate) fn write(&self, at: u64, bytes: &[u8], operation: Operation) -> Result<(), Error> {
        self.write_list(at, &Buffers::from_slice(bytes), Durability::AtFlush)
            .map_err(|error| self.failed(operation, error))
    }

    /// Leaves out [`HostFile::sync`]: for a file in the making, which a crash leaves nameless anyway.
    pub(crate) fn leave_out_syncs(&self) {
        self.syncs.store(false, Ordering::Relaxed);
    }

    /// Makes what was written safe from a crash of the host.
    pub(crate) fn sync(&self, operation: Operation) -> Result<(), Error> {
        if !self.syncs.load(Ordering::Relaxed) {
            return Ok(());
        }
        rustix::fs::fdatasync(&self.file).map_err(|error| self.failed(operation, error.into()))
    }

    /// Frees the storage of a range, if the host can; whether it did. The range then reads as zeroes.
    pub(crate) fn punch_hole(&self, at: u64, len: u64) -> io::Result<bool> {
        self.try_fallocate(&self.has_punch_hole, FallocateFlags::PUNCH_HOLE, at, len)
    }

    /// Makes a range zero in the way that costs least; `may_free` lets it free storage.
    pub(crate) fn write_zeroes(&self, at: u64, len: u64, may_free: bool) -> io::Result<()> {
        if len == 0 || (may_free && self.punch_hole(at, len)?) {
            return Ok(());
        }
        if self.try_fallocate(&self.has_zero_range, FallocateFlags::ZERO_RANGE, at, len)? {
            return Ok(());
        }
        self.write_zeroes_plainly(at, len)
    }

    /// Writes from memory of this process, in pieces of a zeroed block: the last resort.
    fn write_zeroes_plainly(&self, at: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
        let mut done = 0;
        while done < len {
            let here = (len - done).min(ZEROES.len() as u64) as usize;
            match rustix::io::pwrite(&self.file, &ZEROES[..here], at + done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// `fallocate` unless the host is known not to have this mode; whether it was done.
    fn try_fallocate(&self, has: &AtomicBool, mode: FallocateFlags, at: u64, len: u64) -> io::Result<bool> {
        if !has.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            return match fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, at, len) {
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

    /// Whether bytes are stored at `at`, and how many from there on are alike, `len` at most.
    pub(crate) fn stored(&self, at: u64, len: u64) -> (bool, u64) {
        // Where the host cannot tell, all is data.
        let all = (true, len);
        match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) if data > at => (false, (data - at).min(len)),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(at)) {
                Ok(hole) if hole > at => (true, (hole - at).min(len)),
                _ => all,
            },
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => (false, len),
            Err(_) => all,
        }
    }

    #[cfg(test)]
    pub(crate) fn pretend(&self, has_punch_hole: bool, has_zero_range: bool) {
        self.has_punch_hole.store(has_punch_hole, Ordering::Relaxed);
        self.has_zero_range.store(has_zero_range, Ordering::Relaxed);
    }
}

fn bad(path: &Path, detail: &str) -> Error {
    Error::new(ErrorKind::BadFormat, Operation::Open).with_path(path).with_detail(detail)
}

/// The most stretches of one call (UIO_MAXIOV).
const IOVECS_MAX: usize = 1024;

/// What is written at a time, in bytes. The host takes memory for its page cache in pieces as large as the write; those of
/// a mebibyte it may first have to make, by moving others about, which was seen to take ten times as long as the write.
const WRITE_STEP: usize = 256 << 10;

/// Repeats a vectored system call until all of `buffers` is moved, at most `step` bytes at a time. `call` gets the stretches
/// to move and how many bytes are done.
fn move_all(
    buffers: &Buffers<'_>,
    step: usize,
    mut call: impl FnMut(&[libc::iovec], usize) -> isize,
) -> io::Result<()> {
    let mut done = 0;
    // What is left after a call that did not move all; nearly always the first one does.
    let mut rest;
    while done < buffers.len() {
        let left = buffers.len() - done;
        let list = if done == 0 && left <= step {
            buffers.iovecs()
        } else {
            rest = buffers.iovecs_of(done, left.min(step));
            &rest[..]
        };
        match call(&list[..list.len().min(IOVECS_MAX)], done) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved if moved > 0 => done += moved as usize,
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

/// Makes a file that somebody else has written, or a folder's names, safe from a crash of the host.
pub(crate) fn sync_file(path: &Path, operation: Operation) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::from_io(operation, error).with_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Ram;
    use std::sync::Arc;

    #[test]
    fn a_transfer_that_the_host_cuts_short_is_continued() {
        // Three stretches, calls of seven bytes at most.
        let (mut seen, mut total) = (Vec::new(), 0);
        let ram = Arc::new(Ram::new(1 << 20).unwrap());
        let mut guest = Buffers::guest(ram.clone());
        for (gpa, len) in [(0, 10), (100, 1), (200, 19)] {
            guest.push(gpa, len).unwrap();
        }
        let base = guest.iovecs()[0].iov_base as usize;
        move_all(&guest, usize::MAX, |list, done| {
            assert_eq!(done, total);
            let moved = list[0].iov_len.min(7);
            seen.push((list[0].iov_base as usize - base, moved));
            total += moved;
            moved as isize
        })
        .unwrap();
        assert_eq!(seen, [(0, 7), (7, 3), (100, 1), (200, 7), (207, 7), (214, 5)]);
        // A call may also end in the middle of a later stretch.
        let (mut calls, mut total) = (0, 0);
        move_all(&guest, usize::MAX, |list, done| {
            assert_eq!(done, total);
            calls += 1;
            let moved = list.iter().map(|iovec| iovec.iov_len).sum::<usize>().min(13);
            total += moved;
            moved as isize
        })
        .unwrap();
        assert_eq!((calls, total), (3, 30));
        // Or no call may have more than so much.
        let mut lens = Vec::new();
        move_all(&guest, 12, |list, _| {
            let len: usize = list.iter().map(|iovec| iovec.iov_len).sum();
            lens.push(len);
            len as isize
        })
        .unwrap();
        assert_eq!(lens, [12, 12, 6]);
    }

    #[test]
    fn holes_are_seen_where_the_host_has_them() {
        let path = std::env::temp_dir().join(format!("disk-file-holes-{}", std::process::id()));
        let file = HostFile::create(&path).unwrap();
        file.set_len(3 << 20, Operation::Create).unwrap();
        file.write(1 << 20, &[1; 4096], Operation::Write).unwrap();
        let (stored, len) = file.stored(1 << 20, 2 << 20);
        assert!(stored && (4096..=2 << 20).contains(&len));
        // A file system without holes may say that all is data.
        let (stored, len) = file.stored(0, 3 << 20);
        assert!(if stored { len > 1 << 20 } else { len == 1 << 20 });
        assert_eq!(HostFile::create(&path).err().map(|e| e.kind()), Some(ErrorKind::Exists));
        std::fs::remove_file(&path).unwrap();
    }
}
