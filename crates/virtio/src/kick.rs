//! Waking a worker.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// An event that one thread waits for and others give: an eventfd that is written only when the last
/// event has been taken note of, since most notifications find the worker awake.
#[derive(Debug)]
pub struct Kick {
    fd: OwnedFd,
    pending: AtomicBool,
}

impl Kick {
    /// Creates an event that has not happened.
    ///
    /// # Errors
    /// When the process may not open more descriptors.
    pub fn new() -> io::Result<Kick> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Kick { fd, pending: AtomicBool::new(false) })
    }

    /// Wakes the waiting thread. Callable from any thread; never blocks.
    pub fn notify(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // The counter cannot be full: it is written at most once between two reads.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Takes note of what has happened so far. The waiting thread calls it before it looks at what the
    /// event is about.
    pub fn clear(&self) {
        // First the counter, then the flag: an event in between finds the flag set and writes nothing,
        // but what it is about was done before, and is seen by the caller since the swap reads its flag.
        // The other order could leave the flag set with an empty counter: no further event would wake.
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.fd, &mut count[..]);
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_ready(kick: &Kick) -> bool {
        let mut fds = [PollFd::new(kick, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn events_collapse_until_noted_and_then_count_anew() {
        let kick = Kick::new().unwrap();
        assert!(!is_ready(&kick));
        for _ in 0..3 {
            kick.notify();
            kick.notify();
            assert!(is_ready(&kick));
            kick.clear();
            assert!(!is_ready(&kick));
        }
        kick.clear();
        // Another writer of the descriptor (the KVM module, say) is taken note of as well.
        rustix::io::write(kick.as_fd(), &1u64.to_ne_bytes()).unwrap();
        assert!(is_ready(&kick));
        kick.clear();
        assert!(!is_ready(&kick));
    }
}
