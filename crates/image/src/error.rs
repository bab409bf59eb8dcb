//! What can go wrong with images.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

/// An error: its kind, a sentence, what to do next, and what was behind it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    remedy: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such image, blob or file.
    NotFound,
    /// What was given is wrong; nothing was changed.
    BadInput,
    /// Somebody else is at it, or the image is needed.
    Busy,
    /// Content is not what its digest or signature says.
    Unverified,
    /// The other side of a transfer refused or broke off.
    Transfer,
    /// The user called it off.
    Cancelled,
    /// The host failed.
    Failed,
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind. The message is a clause without a final stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), remedy: None, source: None }
    }

    pub(crate) fn bad_input(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadInput, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message)
    }

    /// An error of the system with a file.
    pub(crate) fn file(what: &str, path: &Path, source: std::io::Error) -> Error {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Failed,
        };
        Error::new(kind, format!("cannot {what} {}", path.display())).with_source(source)
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Error {
        self.remedy = Some(remedy.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next, if it is known.
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Says which file an error of the system is about.
pub(crate) trait AboutFile<T> {
    fn about(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> AboutFile<T> for std::io::Result<T> {
    fn about(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::file(what, path, error))
    }
}

impl<T> AboutFile<T> for Result<T, rustix::io::Errno> {
    fn about(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::file(what, path, error.into()))
    }
}
