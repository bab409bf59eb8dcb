//! Telling somebody how far the work is, and hearing that it is called off.

use crate::{Error, ErrorKind, Result};

/// Somebody who watches.
pub trait Progress {
    /// A new piece of work begins. `total` is in bytes, if it is known.
    fn begin(&mut self, what: &str, total: Option<u64>);
    /// So many bytes more of it are done.
    fn advance(&mut self, bytes: u64);
    /// A line that some tool printed.
    fn line(&mut self, text: &str) {
        let _ = text;
    }
    /// Whether to stop. Asked often; the work then ends with [`ErrorKind::Cancelled`] and leaves nothing.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self, _: u64) {}
}

/// Ends the work if it is called off.
pub(crate) fn check(progress: &dyn Progress) -> Result<()> {
    if progress.is_cancelled() { Err(Error::new(ErrorKind::Cancelled, "it was called off")) } else { Ok(()) }
}
