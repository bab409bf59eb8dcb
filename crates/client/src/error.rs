//! Why a request was not carried out.

use api::v1::error::{ApiError, ErrorCode};
use std::fmt;
use std::path::Path;

/// A request was not carried out.
#[derive(Debug)]
pub struct Error {
    error: ApiError,
    unreachable: bool,
}

impl Error {
    pub(crate) fn refused(error: ApiError) -> Error {
        Error { error, unreachable: false }
    }

    pub(crate) fn unreachable(socket: &Path, cause: std::io::Error) -> Error {
        let message = format!("no daemon answers at {}", socket.display());
        let error = ApiError::new(ErrorCode::Unavailable, message)
            .with_cause(cause)
            .with_remedy("start one with `arnia daemon`");
        Error { error, unreachable: true }
    }

    pub(crate) fn lost(socket: &Path, cause: hyper::Error) -> Error {
        let message = format!("the daemon at {} went away during the request", socket.display());
        let error = ApiError::new(ErrorCode::Unavailable, message)
            .with_cause(cause)
            .with_remedy("see what came of it, and try again");
        Error { error, unreachable: true }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Error {
        let error = ApiError::new(ErrorCode::Internal, "the daemon answered what was not understood");
        let error = error.with_cause(message.into()).with_remedy("are both programs of the same version?");
        Error { error, unreachable: false }
    }

    /// What the daemon, or this client in its place, says.
    pub fn api(&self) -> &ApiError {
        &self.error
    }

    /// Whether there was no answer at all.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Error {}
