//! Progress of long work, and asking it to end.

use crate::{Error, ErrorKind, Operation};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How far long work is, shared between who does it and who watches.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes that are done, and bytes in all (0 while that is not known).
    pub fn get(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Asks for an end: the work stops at the next step and leaves everything sound.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether an end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Fails once somebody has asked for an end.
    pub(crate) fn check(&self, operation: Operation) -> Result<(), Error> {
        match self.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled, operation)),
            false => Ok(()),
        }
    }
}
