//! Things made on the host that go away again with the worker.

use std::path::{Path, PathBuf};

/// A file or socket that this process made. Removed when dropped, unless kept.
#[derive(Debug)]
pub struct Made {
    path: Option<PathBuf>,
}

impl Made {
    /// Takes over responsibility for `path`.
    pub fn new(path: &Path) -> Made {
        Made { path: Some(path.to_owned()) }
    }

    /// Leaves it in place.
    pub fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}
