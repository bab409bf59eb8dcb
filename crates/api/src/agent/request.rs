//! Requests to the agent and its answers.

use super::Personality;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A request with the version that the host speaks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestLine {
    /// [`super::VERSION`] of the host.
    pub version: u32,
    /// What it wants.
    #[serde(flatten)]
    pub request: Request,
}

impl<'de> Deserialize<'de> for RequestLine {
    // By hand, because a flattened field cannot refuse unknown ones.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RequestLine, D::Error> {
        use serde::de::Error;
        let mut fields = Map::deserialize(deserializer)?;
        let version = fields.remove("version").and_then(|version| version.as_u64());
        let version = version.and_then(|version| u32::try_from(version).ok());
        Ok(RequestLine {
            version: version.ok_or_else(|| D::Error::custom("`version` is missing or no number"))?,
            request: Request::deserialize(Value::Object(fields)).map_err(D::Error::custom)?,
        })
    }
}

/// What the host wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// What are you? Answered by [`Reply::Info`].
    Info {},
    /// Run a program. Answered by [`Reply::Started`], then streams until [`Event::Exited`].
    Exec(ExecParams),
    /// Read a file. Answered by [`Reply::File`], then `Data` frames, the last one empty.
    FileRead {
        /// Absolute path in the guest. Symbolic links are followed.
        path: String,
    },
    /// Write a file, whole or not at all: it gets its name when all has come. Answered by [`Reply::Ready`];
    /// then the host sends `Data` frames, the last one empty, and gets [`Reply::Done`].
    FileWrite {
        /// Absolute path in the guest. A symbolic link is followed.
        path: String,
        /// Permission bits. Default: those of the file that is there, or 0644.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
        /// Owner's user ID. Default: that of the file that is there, or root's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
        /// Owner's group ID.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gid: Option<u32>,
    },
    /// What is at this path? Answered by [`Reply::Attributes`].
    Stat {
        /// Absolute path in the guest.
        path: String,
        /// Whether a symbolic link at its end is followed.
        #[serde(default)]
        follow: bool,
    },
    /// What is in this folder? Answered by [`Reply::Entries`].
    List {
        /// Absolute path in the guest.
        path: String,
        /// Only names after this one, by their bytes: the last one of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// Make a folder and those above it. One that is there is no error.
    MakeFolder {
        /// Absolute path in the guest.
        path: String,
        /// Permission bits of a folder that is made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Make a symbolic link, in place of one that is there.
    MakeLink {
        /// Absolute path in the guest.
        path: String,
        /// What it says.
        target: String,
    },
    /// Shut the guest down. Answered before it happens.
    Shutdown {
        /// What follows.
        mode: ShutdownMode,
        /// Without asking the guest's programs: only file systems are synchronised.
        #[serde(default)]
        force: bool,
    },
    /// Bring the file systems into a state fit for a snapshot and hold them there. Answered by
    /// [`Reply::Frozen`].
    Freeze {
        /// Thaw by itself after this time, in case the host forgets.
        timeout_ms: u32,
    },
    /// Let the file systems go on. Answered by [`Reply::Frozen`].
    Thaw {},
    /// Network cards and their addresses. Answered by [`Reply::Interfaces`].
    Interfaces {},
    /// Become this machine: after a clone, a restore or at first boot. Answered by [`Reply::Personality`].
    Personality(Box<Personality>),
    /// Forget who you are, so that the disk can serve as a template. Shut down afterwards.
    Generalise {},
    /// Mount the folders of the host that the machine's device shows and that are not mounted yet, and unmount those that
    /// it shows no more. Answered by [`Reply::Shares`].
    MountShares {},
    /// Unmount one of them.
    UnmountShare {
        /// What it is called.
        name: String,
        /// Although somebody uses it: they lose it.
        #[serde(default)]
        force: bool,
    },
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecParams {
    /// Program and arguments. A name without a slash is looked for in `PATH`. Empty: the user's shell, as
    /// at login.
    pub command: Vec<String>,
    /// More environment variables, or other values of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Working directory. Default: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// User's name or number. Default: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Gives it a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<WindowSize>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What the host may send while a program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// The terminal has another size now.
    Resize(WindowSize),
    /// Send the program and its group this signal, by number.
    Signal {
        /// As `kill -l` numbers them.
        signal: i32,
    },
}

/// What the agent tells while a program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The program took so many more bytes of its standard input.
    InputTaken {
        /// Since the last event of this kind.
        bytes: u64,
    },
    /// The program ended and all its output has been sent. The connection takes the next request.
    Exited(Exit),
}

/// How a program ended: one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// As shells have it in `$?`: the status, or 128 and the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Exit::Status(status) => status,
            Exit::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// What follows a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// The machine turns itself off.
    Poweroff,
    /// It starts again.
    Reboot,
    /// It stands still.
    Halt,
}

/// An answer: one or the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyResult {
    /// It was done, or has begun.
    Ok(Reply),
    /// It was not.
    Error(AgentError),
}

/// What comes back when a request was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// Done; there is nothing to tell.
    Done,
    /// To [`Request::Info`].
    Info(Info),
    /// To [`Request::Exec`].
    Started,
    /// To [`Request::FileRead`].
    File(Attributes),
    /// To [`Request::FileWrite`]: send it.
    Ready,
    /// To [`Request::Stat`].
    Attributes(Attributes),
    /// To [`Request::List`].
    Entries {
        /// A page of them, in the order of their names' bytes.
        entries: Vec<Entry>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To [`Request::Freeze`] and [`Request::Thaw`].
    Frozen(Freeze),
    /// To [`Request::Interfaces`].
    Interfaces {
        /// All of them, the loopback too.
        interfaces: Vec<Interface>,
    },
    /// To [`Request::Personality`].
    Personality(super::PersonalityReport),
    /// To [`Request::MountShares`].
    Shares {
        /// What became of each.
        shares: Vec<super::shares::ShareReport>,
    },
}

/// What the guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Version of this protocol.
    pub version: u32,
    /// Version of the agent.
    pub agent: String,
    /// `PRETTY_NAME` of its os-release.
    pub system: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Its name for itself.
    pub hostname: String,
    /// Its machine-id, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Changes at every boot.
    pub boot_id: String,
    /// Milliseconds since it booted.
    pub uptime_ms: u64,
    /// Its clock, in nanoseconds since 1970.
    pub clock_ns: u64,
    /// The instance whose personality it took last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
}

/// A file's attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was changed, in seconds since 1970.
    pub modified_s: i64,
    /// What a symbolic link says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Something else: a device, a socket, a pipe.
    Other,
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Entry {
    /// The name; what of it is no UTF-8 is replaced, and the file cannot be reached by it.
    pub name: String,
    /// What it names.
    pub attributes: Attributes,
}

/// The state of the file systems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Mount points of those that are frozen now.
    pub frozen: Vec<String>,
    /// Mount points of those that cannot be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Interface {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// Addresses with their prefix lengths, like `10.0.2.15/24`.
    pub addresses: Vec<String>,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// For programs.
    pub kind: AgentErrorKind,
    /// For people: a sentence.
    pub message: String,
}

impl AgentError {
    /// An error of this kind.
    pub fn new(kind: AgentErrorKind, message: impl Into<String>) -> AgentError {
        AgentError { kind, message: message.into() }
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AgentError {}

/// Why a request was not carried out, in kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentErrorKind {
    /// It is no request.
    Malformed,
    /// The host speaks a version that this agent does not.
    UnsupportedVersion,
    /// The path, program or user does not exist.
    NotFound,
    /// The guest does not permit it.
    Permission,
    /// It makes no sense: a folder read as a file, a signal that does not exist.
    Invalid,
    /// Too much at once, or the file systems are frozen.
    Busy,
    /// The guest failed.
    Failed,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request's fields lie beside these, and one of the same name would never reach it.
    #[test]
    fn no_request_has_a_field_of_the_line() {
        crate::field_guard::check::<Request>(&["version", "op"], "exec", 10, 8);
    }

    #[test]
    fn requests_keep_their_written_form() {
        let exec = ExecParams {
            command: vec!["ls".into(), "-l".into()],
            terminal: Some(WindowSize { rows: 24, columns: 80 }),
            ..ExecParams::default()
        };
        for (request, text) in [
            (Request::Info {}, r#"{"version":1,"op":"info"}"#),
            (
                Request::Exec(exec),
                r#"{"version":1,"op":"exec","command":["ls","-l"],"terminal":{"rows":24,"columns":80}}"#,
            ),
            (
                Request::Shutdown { mode: ShutdownMode::Poweroff, force: false },
                r#"{"version":1,"op":"shutdown","mode":"poweroff","force":false}"#,
            ),
        ] {
            let line = RequestLine { version: 1, request };
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<RequestLine>(text).unwrap(), line);
        }
        let exited = Event::Exited(Exit::Signal(9));
        assert_eq!(serde_json::to_string(&exited).unwrap(), r#"{"type":"exited","signal":9}"#);
        assert_eq!(
            serde_json::from_str::<Event>(r#"{"type":"exited","status":3}"#).unwrap(),
            Event::Exited(Exit::Status(3))
        );
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        for text in [
            "",
            "[]",
            r#"{"op":"info"}"#,
            r#"{"version":1}"#,
            r#"{"version":1,"op":"fly"}"#,
            r#"{"version":"1","op":"info"}"#,
            r#"{"version":1,"op":"info","more":1}"#,
            r#"{"version":1,"op":"exec"}"#,
            r#"{"version":1,"op":"exec","command":[],"root":true}"#,
            r#"{"version":1,"op":"shutdown","mode":"explode"}"#,
        ] {
            assert!(serde_json::from_str::<RequestLine>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_signal_counts_from_128() {
        assert_eq!((Exit::Status(3).code(), Exit::Signal(15).code()), (3, 143));
    }
}
