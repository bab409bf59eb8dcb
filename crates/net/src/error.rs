//! The error of this crate: a kind to decide on, a sentence to show, a source to follow.

use std::error::Error;
use std::fmt;

/// What a [`NetError`] is about, for callers that decide on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetErrorKind {
    /// A MAC address, port-forwarding rule or option that cannot be parsed.
    Syntax,
    /// A configuration whose parts do not fit together.
    Config,
    /// A port on the host that cannot be listened on.
    Bind,
    /// A port-forwarding rule that does not exist.
    NotFound,
    /// The host refused a descriptor or a call that networking cannot do without.
    Host,
}

/// Why something in this crate could not be done.
///
/// The message says what was tried and what to do next; it never repeats the text of its source.
#[derive(Debug)]
pub struct NetError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: NetErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl NetError {
    pub(crate) fn new(kind: NetErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Returns what the error is about.
    pub fn kind(&self) -> NetErrorKind {
        self.0.kind
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for NetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
