//! QEMU's guest agent, for guests that have that one (QEMU documentation, `interop/qemu-ga-ref`).
//!
//! It serves one client, over a serial port or a virtio socket, by one line of JSON for each command.
//! [`Qga::connect`] brings both sides into step, whatever an earlier client left behind.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::agent::{AgentErrorKind, Exit, Interface, ShutdownMode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::agent::Finished;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind};

pub(crate) mod files;

pub use files::QgaFiles;

/// Longest answer in bytes: the agent keeps up to 16 MiB of a program's output, which base64 makes longer.
const LINE_LEN_MAX: usize = 48 << 20;
/// What the agent sends before its answer to `guest-sync-delimited`, and never inside JSON.
const DELIMITER: u8 = 0xff;
/// Pauses between looks at whether a program has ended: the protocol has no other way.
pub const EXEC_POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(500));
/// What the agent keeps of each of a program's outputs, in bytes (`GUEST_EXEC_MAX_OUTPUT`, qga/commands.c).
const OUTPUT_LEN_MAX: usize = 16 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// And one to freezing: what is dirty is written out first, which takes as long as the disk takes.
const TIMEOUT_LONG: Duration = Duration::from_secs(300);

/// A connection to QEMU's guest agent.
#[derive(Debug)]
pub struct Qga<S> {
    stream: S,
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
        let qga = Qga::new(Connection::direct(socket, limit)?.stream)?;
        let set = qga.stream.set_read_timeout(Some(TIMEOUT));
        set.map_err(|error| Error::io("the guest agent's line broke", error))?;
        Ok(qga)
    }

    /// Connects through a worker's socket to an agent that listens on the guest's virtio socket
    /// (`qemu-ga --method vsock-listen --path 3:PORT`).
    ///
    /// # Errors
    /// As [`Qga::connect`].
    pub fn connect_vsock(socket: &Path, port: u32) -> Result<Self, Error> {
        Qga::new(Connection::through_worker(socket, port, TIMEOUT)?.stream)
    }

    /// Freezes the guest's file systems and says how many. Thaw them soon: nothing else does.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn freeze(&mut self) -> Result<u64, Error> {
        let answer = self.ask_long("guest-fsfreeze-freeze")?;
        answer.as_u64().ok_or_else(|| nonsense("guest-fsfreeze-freeze"))
    }

    /// Thaws them and says how many; also those that somebody else has frozen.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn thaw(&mut self) -> Result<u64, Error> {
        let answer = self.ask_long("guest-fsfreeze-thaw")?;
        answer.as_u64().ok_or_else(|| nonsense("guest-fsfreeze-thaw"))
    }

    fn ask_long(&mut self, command: &str) -> Result<Value, Error> {
        let broke = |error| Error::io("the guest agent's line broke", error);
        self.stream.set_read_timeout(Some(TIMEOUT_LONG)).map_err(broke)?;
        let answer = self.ask(command, json!({}));
        self.stream.set_read_timeout(Some(TIMEOUT)).map_err(broke)?;
        answer
    }
}

impl<S: Read + Write> Qga<S> {
    /// Begins on a stream that leads to the agent. The stream should have time limits.
    ///
    /// # Errors
    /// If no agent answers.
    pub fn new(stream: S) -> Result<Self, Error> {
        let mut qga = Qga { stream, buffer: Vec::new() };
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
        loop {
            // Answers to somebody else are passed over until the one behind the delimiter is ours.
            let line = self.line(Some(DELIMITER))?;
            let answer: Option<Value> = serde_json::from_slice(&line).ok();
            if answer.is_some_and(|answer| answer.get("return").and_then(Value::as_u64) == Some(id)) {
                return Ok(());
            }
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
        let answer = self.ask("guest-exec", parameters)?;
        answer.get("pid").and_then(Value::as_i64).ok_or_else(|| nonsense("guest-exec"))
    }

    /// How a program that was started ended; nothing while it runs. Once told, the agent has forgotten it.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the agent does not know it, [`ErrorKind::Protocol`] if the program wrote more than the
    /// agent keeps.
    pub fn exec_status(&mut self, pid: i64) -> Result<Option<Finished>, Error> {
        let status = self.ask("guest-exec-status", json!({"pid": pid}))?;
        match status.get("exited") == Some(&Value::Bool(true)) {
            true => finished(&status).map(Some),
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
        let mut line = json!({"execute": command, "arguments": arguments}).to_string().into_bytes();
        line.push(b'\n');
        self.send(&line)?;
        let line = self.line(None)?;
        let mut answer: Value = serde_json::from_slice(&line).map_err(|_| nonsense(command))?;
        if let Some(error) = answer.get("error") {
            let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
            let kind = match error.get("class").and_then(Value::as_str) {
                // It may also be one that the guest's administrator has switched off.
                Some("CommandNotFound") => AgentErrorKind::UnsupportedVersion,
                _ => AgentErrorKind::Failed,
            };
            let text: String = text.chars().take(500).collect();
            return Err(Error::new(ErrorKind::Refused(kind), format!("{command}: {text}")));
        }
        answer.get_mut("return").map(Value::take).ok_or_else(|| nonsense(command))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write_all(bytes).map_err(|error| Error::io("the guest agent's line broke", error))
    }

    /// The next line; with a delimiter, the one that follows it.
    fn line(&mut self, delimiter: Option<u8>) -> Result<Vec<u8>, Error> {
        let mut waiting = delimiter.is_some();
        let mut searched = 0;
        loop {
            if waiting && let Some(at) = self.buffer.iter().position(|byte| Some(*byte) == delimiter) {
                self.buffer.drain(..=at);
                (waiting, searched) = (false, 0);
            } else if waiting {
                self.buffer.clear();
            }
            if !waiting {
                if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                    let mut line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                    line.pop();
                    return Ok(line);
                }
                searched = self.buffer.len();
            }
            if self.buffer.len() > LINE_LEN_MAX {
                return Err(Error::protocol("the guest agent's answer has no end"));
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    let gone = io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::io("the guest agent's line was closed", gone));
                }
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("the guest agent does not answer", error)),
            }
        }
    }
}

fn nonsense(command: &str) -> Error {
    Error::protocol(format!("the guest agent's answer to {command} makes no sense"))
}

fn finished(status: &Value) -> Result<Finished, Error> {
    let number =
        |name: &str| status.get(name).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
    let exit = match (number("exitcode"), number("signal")) {
        (_, Some(signal)) => Exit::Signal(signal),
        (Some(status), None) => Exit::Status(status),
        (None, None) => return Err(nonsense("guest-exec-status")),
    };
    let data = |name: &str| {
        let text = status.get(name).and_then(Value::as_str).unwrap_or_default();
        BASE64_STANDARD.decode(text).map_err(|_| nonsense("guest-exec-status"))
    };
    let cut = |name: &str| status.get(name) == Some(&Value::Bool(true));
    if cut("out-truncated") || cut("err-truncated") {
        let most = OUTPUT_LEN_MAX >> 20;
        return Err(Error::protocol(format!(
            "the program has ended and wrote more than the {most} MiB that QEMU's agent keeps"
        )));
    }
    Ok(Finished { exit, stdout: data("out-data")?, stderr: data("err-data")? })
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
