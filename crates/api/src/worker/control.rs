//! The control socket of a worker, version 1.
//!
//! A Unix stream socket. Each request is one line of JSON, at most [`LINE_LEN_MAX`] bytes; each gets one
//! line in answer, in order. Clients may be many, and may stay or go at any time.
//!
//! ```text
//! > {"op": "status", "id": 1}
//! < {"id": 1, "ok": {"type": "status", "state": "running", "engine": "bt", ...}}
//! > {"op": "fly"}
//! < {"error": {"kind": "unknown_operation", "message": "..."}}
//! ```
//!
//! `id` is the client's own and comes back; `version` may be given to be sure of the meaning. To add an
//! operation: a variant of [`Request`], one of [`Reply`] if it has its own answer, and a line in the
//! table of `docs/reference/arnia-vmm.md`. Fields are only ever added; a change of meaning is a new
//! version.

use crate::worker::config::RateLimits;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// Longest line that a worker takes, in bytes, with its newline.
pub const LINE_LEN_MAX: usize = 64 * 1024;

/// One line from a client.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestLine {
    /// Comes back in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The version that the client speaks; [`VERSION`] when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// What it wants.
    #[serde(flatten)]
    pub request: Request,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// What is the machine, and what does it do? Answered by [`Reply::Status`].
    Status {},
    /// Stop the vCPUs and guest time. Done when they stand still.
    Pause {},
    /// Let them go on.
    Resume {},
    /// Press the power button. The guest decides what follows.
    Power {},
    /// End the machine at once, whatever the guest does. Disks are flushed, the guest's caches are lost.
    Stop {},
    /// Start the machine again from the beginning, like its reset button.
    Reset {},
    /// What was counted so far. Answered by [`Reply::Counters`].
    Counters {},
    /// Save the machine to a new snapshot while it goes on, or while it is paused. Answered by
    /// [`Reply::Snapshot`] when it is safe on disk; ask for [`Request::Status`] over another connection to
    /// see how it comes along. On failure the machine goes on and nothing of the snapshot is left.
    Snapshot {
        /// Its name: a folder of this name in the worker's folder for snapshots.
        name: String,
        /// Save only the memory that has changed since this snapshot, which has to be the machine's last:
        /// the last one made of it, or the one that it was restored from if that is in the same folder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<String>,
        /// Whether disks that the guest may write are part of it. Without them only a paused machine can be
        /// saved, and whoever goes on from it has to give it disks with the same contents.
        #[serde(default = "with_disks", skip_serializing_if = "is_with_disks")]
        disks: bool,
    },
    /// Take the disc out of a CD-ROM drive, or put another one in.
    Disc {
        /// The drive's number, from 0 on.
        #[serde(default)]
        drive: u32,
        /// The image to put in, in the drive's folder for media. Without it, the drive is empty afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Take the disc from a guest that holds it.
        #[serde(default)]
        force: bool,
    },
    /// What is on the screen. Answered by [`Reply::Screenshot`].
    Screenshot {},
    /// What is on the screen of a text mode. Answered by [`Reply::ScreenText`].
    ScreenText {},
    /// Press keys: those named, one after the other (`enter`, `ctrl-alt-delete`), then those that type the text on
    /// a US keyboard. Answered before the guest has read them.
    Keys {
        /// Names of keys, those pressed together with hyphens in between.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        keys: Vec<String>,
        /// Text to be typed.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        text: String,
    },
    /// Give up the snapshot that is being made. Its own request is answered with a failure.
    CancelSnapshot {},
    /// Which ports of the host lead into the guest? Answered by [`Reply::Ports`].
    Ports {},
    /// Let a port of the host lead into the guest. Answered by [`Reply::Ports`] with that one, as it is: with the
    /// port that the host chose if it was to.
    PortAdd {
        /// The card, counted from 0.
        card: usize,
        /// `[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]`
        rule: String,
    },
    /// Close such a port. Connections through it go on.
    PortRemove {
        /// The card, counted from 0.
        card: usize,
        /// A rule that listens at the same place.
        rule: String,
    },
    /// Show the guest another folder. Its agent has to be told.
    ShareAdd {
        /// What it is.
        share: crate::worker::config::ShareConfig,
    },
    /// Show a folder no more. What the guest has open there is lost.
    ShareRemove {
        /// What it is called.
        name: String,
    },
    /// What are the disks, and what is being done to them? Answered by [`Reply::Disks`].
    Disks {},
    /// Make a disk larger. The guest is told.
    DiskResize {
        /// Which one, from 0 on, in the order of the configuration.
        disk: u32,
        /// Its new size in bytes, a multiple of 512.
        size: u64,
    },
    /// Put an empty qcow2 image on top of a disk: what the guest writes from now on goes there, and the present
    /// image stays as it is. Takes milliseconds.
    DiskOverlay {
        /// Which disk.
        disk: u32,
        /// The new file, in the worker's folder for disks.
        path: PathBuf,
    },
    /// Move what the image on top stores into the one that it stands on, go on with that one, and remove the one on
    /// top. For overlays that were made while this worker ran. Answered when it is done; ask for
    /// [`Request::Disks`] over another connection to see how it comes along.
    DiskCommit {
        /// Which disk.
        disk: u32,
    },
    /// Make the image on top of a disk stand on another one, or alone. It reads as before. Answered when it is
    /// done.
    DiskRebase {
        /// Which disk.
        disk: u32,
        /// What it is to stand on, in the worker's folder for disks; nothing to stand alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backing: Option<PathBuf>,
    },
    /// Give up what is being done to a disk. Its own request is answered with a failure, and the disk is sound.
    DiskCancel {
        /// Which disk.
        disk: u32,
    },
    /// Limit how fast the guest may use a disk; without limits, as fast as it can.
    DiskLimits {
        /// Which disk.
        disk: u32,
        /// The limits, which take the place of those before.
        #[serde(default)]
        limits: RateLimits,
    },
    /// Limit how fast frames go through a network card, in each direction.
    NetLimits {
        /// Which card, from 0 on, in the order of the configuration.
        net: u32,
        /// The limits, which take the place of those before.
        #[serde(default)]
        limits: RateLimits,
    },
    /// What is known of the guest's memory? Answered by [`Reply::Memory`]. The guest is asked for newer figures,
    /// which a later request gets.
    Memory {},
    /// Keep the process to so much of the host's processors; without a number, to nothing.
    CpuLimit {
        /// Hundredths of one processor: 150 for one and a half.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        percent: Option<u32>,
    },
    /// Leave the guest so much of its memory and take the rest, as far as the guest gives it. Done when the guest
    /// has been told; ask for [`Request::Memory`] to see how far it has come.
    MemoryTarget {
        /// Bytes that the guest keeps, all of its memory at most.
        bytes: u64,
    },
}

fn with_disks() -> bool {
    true
}
fn is_with_disks(disks: &bool) -> bool {
    *disks
}

impl<'de> Deserialize<'de> for RequestLine {
    // By hand, because a flattened field cannot refuse unknown ones.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RequestLine, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let (id, version) = (take("id"), take("version"));
        let number = |value: Option<Value>, what: &str| match value {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(D::Error::custom(format!("`{what}` is not a whole number"))),
            },
        };
        let version = match number(version, "version")? {
            Some(version) => {
                Some(u32::try_from(version).map_err(|_| D::Error::custom("`version` is too large"))?)
            }
            None => None,
        };
        Ok(RequestLine {
            id: number(id, "id")?,
            version,
            request: Request::deserialize(Value::Object(fields)).map_err(D::Error::custom)?,
        })
    }
}

/// One line to a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplyLine {
    /// The request's, if it had one that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The answer.
    #[serde(flatten)]
    pub result: ReplyResult,
}

/// An answer: one or the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyResult {
    /// It was done.
    Ok(Reply),
    /// It was not.
    Error(ControlError),
}

/// What comes back when a request was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// Done; there is nothing to tell.
    Done,
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Counters`].
    Counters(Counters),
    /// To [`Request::Snapshot`].
    Snapshot(SnapshotDone),
    /// To [`Request::Screenshot`].
    Screenshot(Screenshot),
    /// To [`Request::ScreenText`].
    ScreenText(ScreenText),
    /// To [`Request::Ports`] and [`Request::PortAdd`].
    Ports {
        /// The ports, by card and in the order in which they were opened.
        ports: Vec<PortStatus>,
    },
    /// To [`Request::Disks`].
    Disks(Disks),
    /// To [`Request::Memory`].
    Memory(Memory),
}

/// What is on the screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Screenshot {
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// The picture as PNG, in Base64.
    pub png: String,
}

/// What is on the screen of a text mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScreenText {
    /// Line by line, without blanks at their ends; absent when the screen shows graphics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<Vec<String>>,
}

/// A port of the host that leads into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// The card, counted from 0.
    pub card: usize,
    /// The rule in full: `ADDRESS:PORT:GUEST:PORT/PROTOCOL`.
    pub rule: String,
}

/// The disks of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// In the order of the configuration.
    pub disks: Vec<Disk>,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image on top; absent for one that is lost at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What the image stands on, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<PathBuf>,
    /// How fast the guest may use it.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
    /// What is being done to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<DiskJob>,
}

/// What is being done to a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskJob {
    /// `commit` or `rebase`.
    pub kind: DiskJobKind,
    /// Bytes of the disk that have been looked at.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
}

/// The kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskJobKind {
    /// [`Request::DiskCommit`].
    Commit,
    /// [`Request::DiskRebase`].
    Rebase,
}

/// What is known of a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Whether the guest has a driver for the balloon.
    pub balloon_active: bool,
    /// Bytes of the machine.
    pub total_bytes: u64,
    /// Bytes that the guest is to keep.
    pub target_bytes: u64,
    /// Bytes that it has now.
    pub current_bytes: u64,
    /// Bytes that went back to the host so far because the guest said that they were free.
    pub reported_bytes: u64,
    /// What the guest told of itself last, like `free_bytes` and `available_bytes`; nothing before it did.
    pub guest: BTreeMap<String, u64>,
}

/// A snapshot that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDone {
    /// Its name.
    pub name: String,
    /// Its identity, a UUID.
    pub id: String,
    /// Bytes that it takes on the host's disk, without what it shares with its parent or with disks.
    pub bytes: u64,
    /// How long the guest stood still, in microseconds: all stops together.
    pub stopped_us: u64,
    /// How long the longest of these stops was.
    pub longest_stop_us: u64,
    /// How long all of it took, in milliseconds.
    pub total_ms: u64,
    /// How often changed memory was copied while the guest ran.
    pub rounds: u32,
}

/// How far a snapshot has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotProgress {
    /// Its name.
    pub name: String,
    /// What is being done.
    pub phase: SnapshotPhase,
    /// Bytes that are done of this phase.
    pub done_bytes: u64,
    /// Bytes that this phase has, as far as is known.
    pub total_bytes: u64,
}

/// What is being done for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotPhase {
    /// Disks are copied; the guest runs.
    Disks,
    /// Memory is copied; the guest runs.
    Memory,
    /// What was copied is made safe on disk; the guest runs.
    Sync,
}

/// What a machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this protocol.
    pub version: u32,
    /// Version of the worker program.
    pub program: String,
    /// The worker's process ID.
    pub pid: u32,
    /// The machine's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The machine's UUID.
    pub uuid: String,
    /// What it does now.
    pub state: VmState,
    /// The engine that executes guest code: `kvm` or `bt`.
    pub engine: String,
    /// The CPU model.
    pub cpu_model: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Guest time since the machine was created, in milliseconds; stands still while paused.
    pub guest_time_ms: u64,
    /// How many times the machine was reset.
    pub resets: u64,
    /// The snapshot that is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotProgress>,
    /// The snapshot that the next incremental one can build on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_base: Option<String>,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Being built; no guest code has run.
    Starting,
    /// Guest code runs.
    Running,
    /// Guest code and guest time stand still.
    Paused,
    /// Being reset.
    Resetting,
    /// Ended; the worker is about to exit.
    Stopped,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Microseconds from the start of the program to the first guest instruction; absent before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_to_first_instruction_us: Option<u64>,
    /// The engine's own counters.
    pub engine: BTreeMap<String, u64>,
    /// Accesses of vCPUs to devices, by kind.
    pub io: BTreeMap<String, u64>,
    /// What disks and network cards were asked to do: requests, frames, bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, u64>,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// For programs.
    pub kind: ControlErrorKind,
    /// For people: a sentence.
    pub message: String,
}

/// Why a request was not carried out, in kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ControlErrorKind {
    /// The line is not JSON, too long, or lacks something.
    Malformed,
    /// The client speaks a version that this worker does not.
    UnsupportedVersion,
    /// There is no such operation.
    UnknownOperation,
    /// The machine's state does not allow it.
    WrongState,
    /// Too many clients, or another snapshot is being made.
    Busy,
    /// What was asked for cannot be: a name that is taken, a folder that is missing.
    BadRequest,
    /// The worker or its host failed.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_written() {
        for (text, id, version, request) in [
            (r#"{"op":"status"}"#, None, None, Request::Status {}),
            (r#"{"id":7,"op":"pause"}"#, Some(7), None, Request::Pause {}),
            (r#"{"id":7,"version":1,"op":"counters"}"#, Some(7), Some(1), Request::Counters {}),
        ] {
            let line: RequestLine = serde_json::from_str(text).unwrap();
            assert_eq!(line, RequestLine { id, version, request });
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
        }
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"op":"fly"}"#,
            r#"{"op":1}"#,
            r#"{"op":"status","verbose":true}"#,
            r#"{"op":"status","id":"x"}"#,
            r#"{"op":"status","version":-1}"#,
            r#"{"op":"status","version":99999999999}"#,
        ] {
            assert!(serde_json::from_str::<RequestLine>(text).is_err(), "{text}");
        }
    }

    /// A request's fields lie beside these in its line, and one of the same name would never reach it.
    #[test]
    fn no_request_has_a_field_of_the_line() {
        crate::field_guard::check::<Request>(&["id", "version", "op"], "net_limits", 20, 10);
    }

    #[test]
    fn replies_keep_their_written_form() {
        let done = ReplyLine { id: Some(3), result: ReplyResult::Ok(Reply::Done) };
        let refused = ReplyLine {
            id: None,
            result: ReplyResult::Error(ControlError {
                kind: ControlErrorKind::WrongState,
                message: "it is paused".into(),
            }),
        };
        let counters = Counters {
            start_to_first_instruction_us: Some(5),
            engine: [("blocks".to_owned(), 2)].into(),
            io: BTreeMap::new(),
            devices: BTreeMap::new(),
        };
        for (line, text) in [
            (done, r#"{"id":3,"ok":{"type":"done"}}"#),
            (refused, r#"{"error":{"kind":"wrong_state","message":"it is paused"}}"#),
            (
                ReplyLine { id: None, result: ReplyResult::Ok(Reply::Counters(counters)) },
                r#"{"ok":{"type":"counters","start_to_first_instruction_us":5,"engine":{"blocks":2},"io":{}}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<ReplyLine>(text).unwrap(), line);
        }
    }
}
