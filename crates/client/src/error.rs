//! Why a request was not carried out.

use crate::connection::Target;
use api::v1::error::{ApiError, ErrorCode};
use std::fmt;

/// A request was not carried out.
#[derive(Debug)]
pub struct Error {
    error: ApiError,
    origin: Origin,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Daemon,
    /// There was no answer.
    Nobody,
    /// The guest, of a program that was to run in it.
    Guest,
}

impl Error {
    pub(crate) fn refused(error: ApiError) -> Error {
        Error { error, origin: Origin::Daemon }
    }

    pub(crate) fn of_guest(error: ApiError) -> Error {
        Error { error, origin: Origin::Guest }
    }

    pub(crate) fn unreachable(target: &Target, cause: std::io::Error) -> Error {
        let message = format!("no daemon answers at {target}");
        let error = ApiError::new(ErrorCode::Unavailable, message)
            .with_cause(&cause)
            .with_remedy(match target {
                Target::Unix(_) => "start one with `arnia daemon`",
                // rustls wraps its own errors into those of connections.
                Target::Tls(_) if cause.get_ref().is_some_and(|e| e.to_string().contains("certificate")) => {
                    "the daemon shows another certificate than the one that you have trusted: if that is right, remove \
                     the context and add it again"
                }
                Target::Tls(_) => "it has to run there with `arnia daemon --listen`, and be reachable",
            });
        Error { error, origin: Origin::Nobody }
    }

    pub(crate) fn lost(target: &Target, cause: hyper::Error) -> Error {
        let message = format!("the daemon at {target} went away during the request");
        let error = ApiError::new(ErrorCode::Unavailable, message)
            .with_cause(cause)
            .with_remedy("see what came of it, and try again");
        Error { error, origin: Origin::Nobody }
    }

    /// What a daemon elsewhere is reached by cannot be used.
    pub(crate) fn bad_remote(message: String, cause: &dyn std::error::Error) -> Error {
        Error { error: ApiError::new(ErrorCode::Invalid, message).with_cause(cause), origin: Origin::Daemon }
    }

    /// The answer did not come whole.
    pub(crate) fn cut(cause: &hyper::Error) -> Error {
        let error = ApiError::new(ErrorCode::Unavailable, "the answer was broken off")
            .with_cause(cause)
            .with_remedy("try again; `arnia logs` may tell more");
        Error { error, origin: Origin::Daemon }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Error {
        let error = ApiError::new(ErrorCode::Internal, "the daemon answered what was not understood");
        let error = error.with_cause(message.into()).with_remedy("are both programs of the same version?");
        Error { error, origin: Origin::Daemon }
    }

    /// What the daemon, or this client in its place, says.
    pub fn api(&self) -> &ApiError {
        &self.error
    }

    /// Whether there was no answer at all.
    pub fn is_unreachable(&self) -> bool {
        self.origin == Origin::Nobody
    }

    /// Whether a program in a guest could not be started or waited for, and not the machine or the daemon is
    /// the reason.
    pub fn is_of_guest(&self) -> bool {
        self.origin == Origin::Guest
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Error {}
