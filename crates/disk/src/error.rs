use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, in kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such file or device.
    NotFound,
    /// Another virtual machine (or program) has the disk open in a way that excludes this one.
    LockedByOther,
    /// The host refuses access to the file.
    Permission,
    /// The file is not what its format says: too short, damaged, of an unknown kind.
    BadFormat,
    /// The host could not carry out the operation.
    Io,
    /// The file system or quota behind the disk is full.
    NoSpace,
    /// A change was asked of a disk that is read-only.
    ReadOnly,
    /// The range does not lie within the disk: the guest's mistake.
    OutOfRange,
    /// The format, or a feature of it that the image needs, is not supported.
    Unsupported,
    /// The image names another file that may not be used.
    Forbidden,
    /// There is something already where a new image was to be.
    Exists,
    /// Somebody asked for the work to end.
    Cancelled,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    Open,
    Lock,
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    Create,
    Resize,
    Check,
    Convert,
    Commit,
    Rebase,
    Map,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Open => "open",
            Operation::Lock => "lock",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write zeroes to",
            Operation::Create => "create",
            Operation::Resize => "resize",
            Operation::Check => "check",
            Operation::Convert => "convert",
            Operation::Commit => "commit",
            Operation::Rebase => "rebase",
            Operation::Map => "map",
        })
    }
}

/// A failed operation on a disk: kind, context, source. One word in a `Result`.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    operation: Operation,
    path: Option<PathBuf>,
    range: Option<(u64, u64)>,
    detail: Option<String>,
    source: Option<io::Error>,
}

impl Error {
    /// Creates an error without context.
    pub fn new(kind: ErrorKind, operation: Operation) -> Error {
        Error(Box::new(Inner { kind, operation, path: None, range: None, detail: None, source: None }))
    }

    /// Creates an error from what the host said, deriving the kind.
    pub fn from_io(operation: Operation, source: io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV) => ErrorKind::NotFound,
            Some(libc::EACCES | libc::EPERM) => ErrorKind::Permission,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
            Some(libc::EROFS) => ErrorKind::ReadOnly,
            _ => ErrorKind::Io,
        };
        let mut error = Error::new(kind, operation);
        error.0.source = Some(source);
        error
    }

    /// Adds the file.
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Error {
        self.0.path = Some(path.as_ref().to_owned());
        self
    }

    /// Adds the range, in bytes.
    pub fn with_range(mut self, offset: u64, len: u64) -> Error {
        self.0.range = Some((offset, len));
        self
    }

    /// Says what exactly is wrong, as a clause; it replaces the kind's general words.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Error {
        self.0.detail = Some(detail.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done.
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// The file, where one is known.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// First byte and length of the range that was accessed, where there is one.
    pub fn range(&self) -> Option<(u64, u64)> {
        self.0.range
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        write!(f, "cannot {} ", inner.operation)?;
        match &inner.path {
            Some(path) => write!(f, "disk {}", path.display())?,
            None => f.write_str("the disk")?,
        }
        if let Some((offset, len)) = inner.range {
            write!(f, " ({len} bytes at offset {offset})")?;
        }
        if let Some(detail) = &inner.detail {
            return write!(f, ": {detail}");
        }
        f.write_str(match inner.kind {
            ErrorKind::NotFound => ": there is no such file; check the path",
            ErrorKind::LockedByOther => {
                ": another virtual machine is using it; stop that one, or give this one a copy"
            }
            ErrorKind::Permission => ": this user may not; change the file's owner or mode",
            ErrorKind::BadFormat => ": it is not a disk image of this format",
            ErrorKind::Io => "",
            ErrorKind::NoSpace => ": no space is left where it is stored",
            ErrorKind::ReadOnly => ": it is read-only",
            ErrorKind::OutOfRange => ": that is beyond its end",
            ErrorKind::Unsupported => ": that is not supported for this format",
            ErrorKind::Forbidden => ": it names a file that may not be used",
            ErrorKind::Exists => {
                ": there is a file already; choose another name, or say --force to replace it"
            }
            ErrorKind::Cancelled => ": it was cancelled",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn what_the_host_says_becomes_a_kind() {
        for (errno, kind) in [
            (libc::ENOENT, ErrorKind::NotFound),
            (libc::EACCES, ErrorKind::Permission),
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EROFS, ErrorKind::ReadOnly),
            (libc::EIO, ErrorKind::Io),
        ] {
            let error = Error::from_io(Operation::Write, io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind(), kind);
        }
    }

    #[test]
    fn the_message_has_the_context_but_not_the_source() {
        let error = Error::from_io(Operation::Read, io::Error::from_raw_os_error(libc::EIO))
            .with_path("/a/b.img")
            .with_range(1024, 512);
        assert_eq!(error.to_string(), "cannot read disk /a/b.img (512 bytes at offset 1024)");
        assert!(error.source().is_some());
        let locked = Error::new(ErrorKind::LockedByOther, Operation::Open).with_path("x");
        assert!(locked.to_string().contains("another virtual machine"));
    }
}
