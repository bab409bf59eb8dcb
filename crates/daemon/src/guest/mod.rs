//! Guests, by way of the agents in them.
//!
//! Everything that comes from a guest is hostile: what is kept or shown of it is bounded and printable, and no
//! guest that stalls holds up anything but the request that asked it.

mod archive;
pub(crate) mod exec;
pub(crate) mod files;
mod frames;
mod qemu;
mod view;
mod ways;

pub(crate) use view::{printable, view};
pub(crate) use ways::Ways;

use crate::Error;
use agent_client::ErrorKind;
use api::agent::AgentErrorKind;
use api::v1::error::ErrorCode;

/// Requests to the agent of one guest at a time: its own limit.
pub(crate) const REQUESTS_MAX: usize = 64;

impl From<agent_client::Error> for Error {
    fn from(error: agent_client::Error) -> Error {
        let message = printable(&error.to_string(), 1024);
        let refusal = match error.kind() {
            ErrorKind::NotReady => return no_agent(std::error::Error::source(&error)),
            ErrorKind::TimedOut => Error::new(ErrorCode::GuestTimeout, message),
            ErrorKind::Refused(kind) => refused(kind, message),
            _ => Error::new(ErrorCode::GuestFailed, message),
        };
        match std::error::Error::source(&error) {
            Some(source) => refusal.with_cause(source),
            None => refusal,
        }
    }
}

/// The agent is not there.
pub(crate) fn no_agent(cause: Option<&(dyn std::error::Error + 'static)>) -> Error {
    let error = Error::new(ErrorCode::Unavailable, "no agent answers in the guest").with_remedy(
        "the guest may still be starting: see `arnia logs`; if it has no arnia-agent, use `arnia console`",
    );
    match cause {
        Some(cause) => error.with_cause(cause),
        None => error,
    }
}

/// The agent has said no.
pub(crate) fn refused(kind: AgentErrorKind, message: String) -> Error {
    let code = match kind {
        AgentErrorKind::NotFound => ErrorCode::NotFound,
        AgentErrorKind::Malformed | AgentErrorKind::Invalid | AgentErrorKind::Permission => {
            ErrorCode::Invalid
        }
        AgentErrorKind::UnsupportedVersion => ErrorCode::Unsupported,
        AgentErrorKind::Busy => ErrorCode::Unavailable,
        _ => ErrorCode::GuestFailed,
    };
    Error::new(code, message)
}
