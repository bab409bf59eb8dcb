//! What can go wrong on the way to an agent and back.

use api::agent::{AgentError, AgentErrorKind};
use std::fmt;
use std::io;

/// An error: its kind, what was being done, and what the system said.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<io::Error>,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nobody answers: the guest is not up yet, or has no agent.
    NotReady,
    /// The agent refused, and said why.
    Refused(AgentErrorKind),
    /// The agent sent what it must not send.
    Protocol,
    /// It did not answer in time.
    TimedOut,
    /// The connection broke, or a file of the host could not be used.
    Io,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    pub(crate) fn protocol(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Protocol, context)
    }

    /// An error of the connection or of a file while doing `context`.
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::InvalidData => ErrorKind::Protocol,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            _ => ErrorKind::Io,
        };
        Error { kind, context: context.into(), source: Some(source) }
    }

    pub(crate) fn not_ready(context: impl Into<String>, source: io::Error) -> Error {
        Error { kind: ErrorKind::NotReady, context: context.into(), source: Some(source) }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<AgentError> for Error {
    fn from(error: AgentError) -> Error {
        Error::new(ErrorKind::Refused(error.kind), error.message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        // Without a source, the text says itself what has taken too long.
        if self.kind == ErrorKind::TimedOut && self.source.is_some() {
            f.write_str(": no answer in time")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
