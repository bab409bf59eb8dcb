use std::fmt;

/// What went wrong, in kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file is not a kernel that this machine can start.
    NotAKernel,
    /// The file is not firmware that this machine can start.
    NotFirmware,
    /// It is a kernel, but damaged.
    Damaged,
    /// It is a kernel, but needs a way of booting or a compression that is not supported.
    Unsupported,
    /// The guest has too little memory for kernel and initial RAM disk.
    TooLittleMemory,
    /// The command line is longer than the kernel takes, or holds a NUL.
    BadCommandLine,
    /// A file could not be read.
    Unreadable,
    /// The machine's description does not fit into its tables.
    BadMachine,
    /// Guest memory could not be written.
    Memory,
}

/// A failed boot preparation.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.source = Some(Box::new(source));
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
