//! From the system's errors to the protocol's.

use api::agent::{AgentError, AgentErrorKind};
use std::fmt::Display;
use std::io;

/// An error of the system while doing `what`.
pub(crate) fn failed(what: impl Display, error: &io::Error) -> AgentError {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::NotFound => AgentErrorKind::NotFound,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => AgentErrorKind::Permission,
        Io::NotADirectory | Io::IsADirectory | Io::InvalidInput | Io::AlreadyExists => {
            AgentErrorKind::Invalid
        }
        _ => AgentErrorKind::Failed,
    };
    AgentError::new(kind, format!("{what}: {error}"))
}

/// Something in a request that makes no sense.
pub(crate) fn invalid(message: impl Into<String>) -> AgentError {
    AgentError::new(AgentErrorKind::Invalid, message)
}
