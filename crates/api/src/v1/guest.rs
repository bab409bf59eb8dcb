//! What goes on inside a guest, by way of the agent in it.
//!
//! A program runs over a WebSocket (`vm_exec`). The client's first message is text, the
//! [`ExecParams`](crate::agent::ExecParams); the daemon answers [`ExecMessage::Started`] or
//! [`ExecMessage::Failed`]. From then on:
//!
//! | message | from client | from daemon |
//! |---|---|---|
//! | binary | [`EXEC_STDIN`] and input; nothing behind that byte: the input's end | [`EXEC_STDOUT`] or [`EXEC_STDERR`] and output |
//! | text | [`Control`](crate::agent::Control): window size, signal | [`ExecMessage`] |
//!
//! A client that has sent more than [`STDIN_WINDOW`](crate::agent::STDIN_WINDOW) bytes of input which no
//! [`ExecMessage::InputTaken`] has acknowledged may be read from no more until the program reads: signals
//! then wait, too.

use super::error::ApiError;
use crate::agent::{Exit, Interface};
use serde::{Deserialize, Serialize};

/// First byte of a binary message from the client: standard input.
pub const EXEC_STDIN: u8 = 0;
/// First byte of a binary message from the daemon: standard output, or all of a terminal's.
pub const EXEC_STDOUT: u8 = 1;
/// First byte of a binary message from the daemon: standard error.
pub const EXEC_STDERR: u8 = 2;
/// The media type of an archive of a folder.
pub const TAR: &str = "application/x-tar";
/// Longest that a client may have the daemon wait for a guest's agent, in seconds.
pub const WAIT_SECONDS_MAX: u32 = 600;

/// What the daemon tells of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecMessage {
    /// It runs.
    Started,
    /// It took so many more bytes of its standard input.
    InputTaken {
        /// Since the last message of this kind.
        bytes: u64,
    },
    /// It ended, and all its output has been sent. Nothing follows.
    Exited(Exit),
    /// It could not be started, or nobody knows any more how it ended. Nothing follows.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// What a guest tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Guest {
    /// Which agent answers: `arnia` or `qemu`, and its version.
    pub agent: String,
    /// Its name for itself.
    pub hostname: String,
    /// Its system, like `Debian GNU/Linux 12 (bookworm)`.
    pub system: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Its network cards, without the loopback.
    pub interfaces: Vec<Interface>,
}

impl Guest {
    /// The addresses by which it may be reached: no loopback, no link-local ones, without prefix lengths.
    pub fn addresses(&self) -> Vec<String> {
        let all = self.interfaces.iter().filter(|interface| interface.up).flat_map(|i| &i.addresses);
        let bare = all.map(|address| address.split('/').next().unwrap_or_default().to_owned());
        bare.filter(|address| !address.starts_with("fe80:") && !address.starts_with("169.254.")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_written_form() {
        for (message, text) in [
            (ExecMessage::Started, r#"{"type":"started"}"#),
            (ExecMessage::InputTaken { bytes: 5 }, r#"{"type":"input_taken","bytes":5}"#),
            (ExecMessage::Exited(Exit::Status(3)), r#"{"type":"exited","status":3}"#),
            (ExecMessage::Exited(Exit::Signal(9)), r#"{"type":"exited","signal":9}"#),
        ] {
            assert_eq!(serde_json::to_string(&message).unwrap(), text);
            assert_eq!(serde_json::from_str::<ExecMessage>(text).unwrap(), message);
        }
    }

    #[test]
    fn addresses_are_those_that_lead_anywhere() {
        let interface = |up, addresses: &[&str]| Interface {
            name: "e".into(),
            mac: None,
            up,
            addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
        };
        let guest = Guest {
            interfaces: vec![
                interface(true, &["10.0.2.15/24", "fe80::1/64"]),
                interface(false, &["10.1.0.1/24"]),
            ],
            ..Guest::default()
        };
        assert_eq!(guest.addresses(), ["10.0.2.15"]);
    }
}
