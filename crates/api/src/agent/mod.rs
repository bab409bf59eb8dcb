//! The guest agent: what the host asks of a running guest, version 1.
//!
//! `arnia-agent` listens on the virtio socket at port [`PORT`]. Only the host may connect. A connection
//! carries [`frame`]s and serves one request after another:
//!
//! ```text
//!   host                                       guest
//!    │ Request {"op": "exec", ...}  ──────────>  │
//!    │ <──────────  Reply {"ok": {"type": "started"}}
//!    │ Stdin, Control  ──────────────────────>   │   until Event "exited"
//!    │ <──────────────────  Stdout, Stderr, Event │
//! ```
//!
//! Both sides take the other for hostile: frames and their contents are bounded ([`frame::FRAME_LEN_MAX`]),
//! and whoever sends what makes no sense now is disconnected. Standard input has its own window
//! ([`STDIN_WINDOW`]), so that a program that does not read cannot hold up signals and window sizes.
//!
//! To add an operation: a variant of [`Request`], one of [`Reply`] if it has its own answer, a line in
//! `docs/reference/arnia-agent.md`. Fields are only ever added; a change of meaning is a new version.

pub mod frame;
pub mod fuzzing;
mod personality;
mod request;
pub mod shares;

pub use personality::{
    GuestFile, Identity, Personality, PersonalityError, PersonalityReport, Provision, UserAccount,
};
pub use request::{
    AgentError, AgentErrorKind, Attributes, Control, Entry, Event, ExecParams, Exit, FileKind, Freeze, Info,
    Interface, Reply, ReplyResult, Request, RequestLine, ShutdownMode, WindowSize,
};

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// The agent's port on the virtio socket. Below 1024, so that only the guest's root can listen there.
pub const PORT: u32 = 771;
/// How many bytes of standard input the host may have sent that no [`Event::InputTaken`] has acknowledged.
pub const STDIN_WINDOW: usize = 256 * 1024;
