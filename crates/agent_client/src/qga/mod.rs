//! QEMU's guest agent, for guests that have that one (QEMU documentation, `interop/qemu-ga-ref`).
//!
//! It serves one client, over a serial port or a virtio socket, by one line of JSON for each command.
//! [`Qga::connect`] brings both sides into step, whatever an earlier client left behind.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::agent::{Interface, ShutdownMode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::agent::Finished;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind};
use crate::timed::{Timed, Timeouts};

mod answer;
pub(crate) mod files;
#[cfg(test)]
mod tests;

pub use files::QgaFiles;

use answer::{ExecStatus, Started, parse};

/// Bytes that are passed over at most until the agent says where its answers begin: more than the longest answer to
/// somebody else.
const PASSED_OVER_MAX: usize = 64 << 20;
/// What the agent sends before its answer to `guest-sync-delimited`, and never inside JSON.
const DELIMITER: u8 = 0xff;
/// Pauses between looks at whether a program has ended: the protocol has no other way.
pub const EXEC_POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(500));
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What one exchange may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// How long one read or write may wait.
    still: Duration,
    /// How long it may take altogether.
    total: Duration,
    /// Longest answer in bytes.
    line_len: usize,
}

impl Limits {
    /// A question with a small answer, which may become many times as large in memory.
    const SMALL: Limits = Limits { still: TIMEOUT, total: TIMEOUT, line_len: 1 << 20 };
    /// Freezing and thawing: what is dirty is written out first, which takes as long as the disk takes.
    const LONG: Limits =
        Limits { still: Duration::from_secs(300), total: Duration::from_secs(300), ..Limits::SMALL };
    /// A piece of a file, or a program's input: serial lines are slow.
    const PIECE: Limits = Limits { total: Duration::from_secs(120), ..Limits::SMALL };
    /// All of a program's output: the agent keeps up to 16 MiB of each, which base64 makes longer.
    const OUTPUT: Limits = Limits { line_len: 48 << 20, ..Limits::PIECE };
}

/// A connection to QEMU's guest agent.
#[derive(Debug)]
pub struct Qga<S> {
    stream: Timed<S>,
    buffer: Vec<u8>,
}

impl Qga<UnixStream> {
    /// Connects to a Unix socket that leads to the agent's serial port.
    ///
    /// # Errors
    /// [`ErrorKind::NotReady`] or [`ErrorKind::TimedOut`] if no agent answers.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        Qga::connect_within(socket, TIMEOUT)
    }

    /// The same; the agent has `limit` to say that it is there.
    ///
    /// # Errors
    /// As [`Qga::connect`].
    pub fn connect_within(socket: &Path, limit: Duration) -> Result<Self, Error> {
        Qga::begin(Connection::direct(socket, limit)?.into_stream(), limit)
    }

    /// Connects through a worker's socket to an agent that listens on the guest's virtio socket
    /// (`qemu-ga --method vsock-listen --path 3:PORT`).
    ///
    /// # Errors
    /// As [`Qga::connect`].
    pub fn connect_vsock(socket: &Path, port: u32) -> Result<Self, Error> {
        Qga::new(Connection::through_worker(socket, port, TIMEOUT)?.into_stream())
    }

    /// Freezes the guest's file systems and says how many. Thaw them soon: nothing else does.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn freeze(&mut self) -> Result<u64, Error> {
        let answer = self.ask_within("guest-fsfreeze-freeze", json!({}), Limits::LONG)?;
        answer.as_u64().ok_or_else(|| nonsense("guest-fsfreeze-freeze"))
    }

    /// Thaws them and says how many; also those that somebody else has frozen.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn thaw(&mut self) -> Result<u64, Error> {
        let answer = self.ask_within("guest-fsfreeze-thaw", json!({}), Limits::LONG)?;
        answer.as_u64().ok_or_else(|| nonsense("guest-fsfreeze-thaw"))
    }
}

impl<S: Timeouts> Qga<S> {
    /// Begins on a stream that leads to the agent.
    ///
    /// # Errors
    /// If no agent answers.
    pub fn new(stream: S) -> Result<Self, Error> {
        Qga::begin(stream, TIMEOUT)
    }

    fn begin(stream: S, limit: Duration) -> Result<Self, Error> {
        let mut qga = Qga { stream: Timed::new(stream, limit), buffer: Vec::new() };
        qga.synchronise()?;
        Ok(qga)
    }

    fn synchronise(&mut self) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = u64::from(now.subsec_nanos()) << 8 | u64::from(std::process::id() & 0xff);
        // The byte before it makes the agent forget half a command of somebody else.
        let mut line = vec![DELIMITER];
        line.extend(json!({"execute": "guest-sync-delimited", "arguments": {"id": id}}).to_string().bytes());
        line.push(b'\n');
        self.send(&line)?;
        let mut left = PASSED_OVER_MAX;
        loop {
            // Answers to somebody else are passed over until the one behind the delimiter is ours.
            self.pass_over(&mut left)?;
            let line = self.line(Limits::SMALL.line_len)?;
            left = left.saturating_sub(line.len());
            if parse::<u64>("guest-sync-delimited", &line).is_ok_and(|answer| answer == id) {
                return Ok(());
            }
        }
    }

    /// Passes over what comes before the next delimiter, and over that; takes what it was from the bytes that are left
    /// to be passed over.
    fn pass_over(&mut self, left: &mut usize) -> Result<(), Error> {
        loop {
            let found = self.buffer.iter().position(|byte| *byte == DELIMITER);
            let passed = self.buffer.drain(..found.map_or(self.buffer.len(), |at| at + 1)).len();
            *left = left.checked_sub(passed).ok_or_else(endless)?;
            if found.is_some() {
                return Ok(());
            }
            self.fill()?;
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.ask("guest-ping", json!({})).map(drop)
    }

    /// Its version and the commands that it has.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn info(&mut self) -> Result<(String, Vec<String>), Error> {
        let answer = self.ask("guest-info", json!({}))?;
        let text = |value: &Value, name: &str| {
            value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let commands = answer.get("supported_commands").and_then(Value::as_array);
        let enabled = |command: &&Value| command.get("enabled") == Some(&Value::Bool(true));
        let commands = commands.into_iter().flatten().filter(enabled).map(|command| text(command, "name"));
        Ok((text(&answer, "version"), commands.collect()))
    }

    /// The guest's name for itself.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn host_name(&mut self) -> Result<String, Error> {
        let answer = self.ask("guest-get-host-name", json!({}))?;
        let name = answer.get("host-name").and_then(Value::as_str);
        name.map(str::to_owned).ok_or_else(|| nonsense("guest-get-host-name"))
    }

    /// The guest's system, like `Debian GNU/Linux 12 (bookworm)`, and the release of its kernel.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn system(&mut self) -> Result<(String, String), Error> {
        let answer = self.ask("guest-get-osinfo", json!({}))?;
        let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok((text("pretty-name"), text("kernel-release")))
    }

    /// Runs a program to its end, with the line to the agent held meanwhile: for short ones.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if it cannot be run, [`ErrorKind::TimedOut`] if it does not end within `limit`.
    pub fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        input: &[u8],
        limit: Duration,
    ) -> Result<Finished, Error> {
        let pid = self.exec(program, arguments, input)?;
        let deadline = Instant::now() + limit;
        let mut pause = EXEC_POLL.0;
        loop {
            if let Some(finished) = self.exec_status(pid)? {
                return Ok(finished);
            }
            if Instant::now() > deadline {
                return Err(Error::new(ErrorKind::TimedOut, format!("{program} runs on in the guest")));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(EXEC_POLL.1);
        }
    }

    /// Starts a program and returns its process ID in the guest, by which [`Qga::exec_status`] is asked: over this
    /// connection or a later one.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if it cannot be run.
    pub fn exec(&mut self, program: &str, arguments: &[&str], input: &[u8]) -> Result<i64, Error> {
        let mut parameters = json!({"path": program, "arg": arguments, "capture-output": true});
        if !input.is_empty() {
            parameters["input-data"] = BASE64_STANDARD.encode(input).into();
        }
        let line = self.exchange("guest-exec", parameters, Limits::PIECE)?;
        Ok(parse::<Started>("guest-exec", &line)?.pid)
    }

    /// How a program that was started ended; nothing while it runs. Once told, the agent has forgotten it.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the agent does not know it, [`ErrorKind::Protocol`] if the program wrote more than the
    /// agent keeps.
    pub fn exec_status(&mut self, pid: i64) -> Result<Option<Finished>, Error> {
        let line = self.exchange("guest-exec-status", json!({"pid": pid}), Limits::OUTPUT)?;
        let status: ExecStatus<'_> = parse("guest-exec-status", &line)?;
        match status.exited {
            true => status.finished().map(Some),
            false => Ok(None),
        }
    }

    /// Whether file systems are frozen.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn is_frozen(&mut self) -> Result<bool, Error> {
        match self.ask("guest-fsfreeze-status", json!({}))?.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(nonsense("guest-fsfreeze-status")),
        }
    }

    /// Asks the guest to shut down. There is no answer but for an error.
    ///
    /// # Errors
    /// If the command cannot be sent.
    pub fn shutdown(&mut self, mode: ShutdownMode) -> Result<(), Error> {
        let mode = match mode {
            ShutdownMode::Poweroff => "powerdown",
            ShutdownMode::Reboot => "reboot",
            ShutdownMode::Halt => "halt",
        };
        let mut line =
            json!({"execute": "guest-shutdown", "arguments": {"mode": mode}}).to_string().into_bytes();
        line.push(b'\n');
        self.stream.begin(TIMEOUT);
        self.send(&line)
    }

    /// The guest's network cards.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let answer = self.ask("guest-network-get-interfaces", json!({}))?;
        let cards = answer.as_array().ok_or_else(|| nonsense("guest-network-get-interfaces"))?;
        Ok(cards.iter().map(interface).collect())
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.ask_within(command, arguments, Limits::SMALL)
    }

    fn ask_within(&mut self, command: &str, arguments: Value, limits: Limits) -> Result<Value, Error> {
        parse(command, &self.exchange(command, arguments, limits)?)
    }

    /// Sends a command; returns the line that answers it, for [`parse`].
    fn exchange(&mut self, command: &str, arguments: Value, limits: Limits) -> Result<Vec<u8>, Error> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string().into_bytes();
        line.push(b'\n');
        self.stream.begin_moving(limits.still, limits.total);
        self.send(&line)?;
        self.line(limits.line_len)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).map_err(|error| Error::io("the guest agent's line broke", error))
    }

    /// The next line, without its end.
    fn line(&mut self, len_max: usize) -> Result<Vec<u8>, Error> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.buffer.len();
            if searched > len_max {
                return Err(endless());
            }
            self.fill()?;
        }
    }

    /// Reads what comes next into the buffer.
    fn fill(&mut self) -> Result<(), Error> {
        let mut bytes = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    let gone = io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::io("the guest agent's line was closed", gone));
                }
                Ok(count) => {
                    self.buffer.extend_from_slice(&bytes[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("the guest agent does not answer", error)),
            }
        }
    }
}

fn nonsense(command: &str) -> Error {
    Error::protocol(format!("the guest agent's answer to {command} makes no sense"))
}

fn endless() -> Error {
    Error::protocol("the guest agent's answer has no end")
}

fn interface(card: &Value) -> Interface {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let addresses = card.get("ip-addresses").and_then(Value::as_array);
    let address = |value: &Value| {
        let prefix = value.get("prefix").and_then(Value::as_u64)?;
        Some(format!("{}/{prefix}", text(value, "ip-address")?))
    };
    Interface {
        name: text(card, "name").unwrap_or_default(),
        mac: text(card, "hardware-address"),
        // The protocol does not tell; a card with an address is up as far as anybody cares.
        up: addresses.is_some_and(|addresses| !addresses.is_empty()),
        addresses: addresses.into_iter().flatten().filter_map(address).collect(),
    }
}
