//! One virtual machine per disk.

use crate::{Error, ErrorKind, Operation};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Locks the whole file against other openings of it, in this process or another: shared by readers,
/// exclusive for a writer. The lock ends when the last descriptor of this opening is closed, so it
/// cannot outlive a crash.
///
/// An open-file-description lock comes first, and NFS carries those between hosts. QEMU takes them too, on
/// single bytes: a reader here takes those of a QEMU that reads and lets nobody write, so that the two can
/// share a file; a writer takes the whole file. Where the host or file system has no such locks, `flock`
/// does the same among our own.
///
/// It waits a moment for a lock that is held. A file that this program has just closed may be locked still: a process
/// that another thread is starting has it until it executes its program.
pub(crate) fn lock(file: &File, exclusive: bool) -> Result<(), Error> {
    let given_up = Instant::now() + PATIENCE;
    loop {
        match try_lock(file, exclusive) {
            Err(error) if error.kind() == ErrorKind::LockedByOther && Instant::now() < given_up => {
                std::thread::sleep(PATIENCE / 20);
            }
            result => return result,
        }
    }
}

/// A started process executes its program within less.
const PATIENCE: Duration = Duration::from_millis(200);

fn try_lock(file: &File, exclusive: bool) -> Result<(), Error> {
    let error = match lock_description(file, exclusive) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(locked()),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => lock_file(file, exclusive),
        _ => Err(Error::from_io(Operation::Lock, error)),
    }
}

/// Makes a writer's lock one of a reader, without a moment in between in which another writer could come.
pub(crate) fn share(file: &File) -> Result<(), Error> {
    let shared = lock_bytes(file, libc::F_RDLCK, 0, 0).and_then(|()| {
        let mut start = 0;
        for byte in SHARED_BYTES {
            lock_bytes(file, libc::F_UNLCK, start, byte - start)?;
            start = byte + 1;
        }
        lock_bytes(file, libc::F_UNLCK, start, 0)
    });
    match shared.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(()),
        Err((Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS), _)) => {
            lock_file(file, false)
        }
        Err((_, error)) => Err(Error::from_io(Operation::Lock, error)),
    }
}

/// The bytes by which QEMU says "I read" (100), "nobody may write" (201) and "nobody may change the size"
/// (203): block/file-posix.c, `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`.
const SHARED_BYTES: [i64; 3] = [100, 201, 203];

fn locked() -> Error {
    Error::new(ErrorKind::LockedByOther, Operation::Open)
}

/// fcntl(2), "Open file description locks".
fn lock_description(file: &File, exclusive: bool) -> io::Result<()> {
    if exclusive {
        return lock_bytes(file, libc::F_WRLCK, 0, 0);
    }
    SHARED_BYTES.iter().try_for_each(|byte| lock_bytes(file, libc::F_RDLCK, *byte, 1))
}

fn lock_bytes(file: &File, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open and the lock structure lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn lock_file(file: &File, exclusive: bool) -> Result<(), Error> {
    use rustix::fs::FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared};
    let operation = if exclusive { NonBlockingLockExclusive } else { NonBlockingLockShared };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(locked()),
        Err(error) => Err(Error::from_io(Operation::Lock, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Method = fn(&File, bool) -> bool;

    #[test]
    fn a_lock_that_a_starting_process_has_for_a_moment_is_waited_for() {
        let path = std::env::temp_dir().join(format!("disk-lock-moment-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let held = open();
        lock(&held, true).unwrap();
        // As a child has it between fork and exec: another descriptor of the same description.
        let child = held.try_clone().unwrap();
        drop(held);
        assert!(try_lock(&open(), true).is_err());
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(child);
        });
        lock(&open(), true).unwrap();
        ends.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let path = std::env::temp_dir().join(format!("disk-lock-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let whole: Method = |file, exclusive| lock(file, exclusive).is_ok();
        let fallback: Method = |file, exclusive| lock_file(file, exclusive).is_ok();
        for (name, method) in [("whole", whole), ("fallback", fallback)] {
            let (a, b, c) = (open(), open(), open());
            assert!(method(&a, false) && method(&b, false), "{name}");
            assert!(!method(&c, true), "{name}: a writer beside readers");
            drop((a, b));
            assert!(method(&c, true), "{name}");
            assert!(!method(&open(), false), "{name}: a reader beside a writer");
        }
        let (a, b) = (open(), open());
        lock(&a, true).unwrap();
        share(&a).unwrap();
        assert!(!whole(&b, true), "a writer beside one that has become a reader");
        assert!(whole(&b, false));
        std::fs::remove_file(&path).unwrap();
    }
}
