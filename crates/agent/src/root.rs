//! Where the system's files are.

use std::io;
use std::path::{Path, PathBuf};

/// A root folder: `/`, or one that stands for it in a test or while an image is made.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The system that runs.
    pub fn live() -> Root {
        Root("/".into())
    }

    /// A system that lies in a folder and does not run.
    pub fn at(folder: impl Into<PathBuf>) -> Root {
        Root(folder.into())
    }

    /// Whether this is the system that runs, whose kernel can be told things.
    pub fn is_live(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// A file of the system by its absolute path.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Text of a file, or nothing if it cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    /// Whether there is something at this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Removes a file; one that is not there is no error.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// A folder for a test, gone afterwards.
    pub(crate) struct TestRoot(pub(crate) Root);

    impl TestRoot {
        pub(crate) fn new(name: &str) -> TestRoot {
            let folder = std::env::temp_dir().join(format!("arnia-agent-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).expect("a temporary folder");
            TestRoot(Root::at(folder))
        }

        /// Writes a file and the folders above it.
        pub(crate) fn write(&self, path: &str, text: &str) {
            let path = self.0.path(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a temporary folder");
            fs::write(path, text).expect("a temporary file");
        }
    }

    impl Drop for TestRoot {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.0);
        }
    }
}
