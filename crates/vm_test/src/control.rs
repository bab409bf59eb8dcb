//! The socket over which a running program is told what to do: JSON, a line each way.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::worker::control::{
    Counters, Reply, ReplyLine, ReplyResult, Request, RequestLine, SnapshotDone, Status, VmState,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Patience, Program};

/// What a machine is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its CPUs run.
    Running,
    /// Its CPUs and its clock stand still.
    Paused,
    /// Anything else, in the program's words.
    Other(String),
}

/// A client of a program's control socket.
#[derive(Clone, Debug)]
pub struct Control {
    socket: PathBuf,
    dialect: Dialect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// The types of the crate `api`.
    Worker,
    /// QEMU's: a greeting, negotiation, `{"execute": …}`, and events between the replies.
    Qmp,
}

impl Control {
    pub(crate) fn new(program: &Program, socket: &Path) -> Self {
        let dialect = match program {
            Program::Worker(_) => Dialect::Worker,
            Program::Qemu => Dialect::Qmp,
        };
        Self { socket: socket.to_owned(), dialect }
    }

    /// What the machine is doing.
    ///
    /// # Errors
    /// All calls here fail if the program does not answer in time, or refuses.
    pub fn state(&self) -> Result<RunState> {
        if self.dialect == Dialect::Worker {
            return Ok(match self.status()?.state {
                VmState::Running => RunState::Running,
                VmState::Paused => RunState::Paused,
                other => RunState::Other(format!("{other:?}")),
            });
        }
        let reply = self.qmp("query-status")?;
        Ok(match reply["status"].as_str().unwrap_or_default() {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            other => RunState::Other(other.to_owned()),
        })
    }

    /// Stops CPUs and clock.
    pub fn pause(&self) -> Result<()> {
        self.order(Request::Pause {}, "stop")
    }

    /// Lets them run on.
    pub fn resume(&self) -> Result<()> {
        self.order(Request::Resume {}, "cont")
    }

    /// Presses the power button.
    pub fn power(&self) -> Result<()> {
        self.order(Request::Power {}, "system_powerdown")
    }

    /// Ends the machine without asking it.
    pub fn stop(&self) -> Result<()> {
        self.order(Request::Stop {}, "quit")
    }

    /// Presses the reset button.
    pub fn reset(&self) -> Result<()> {
        self.order(Request::Reset {}, "system_reset")
    }

    /// All that the worker says of itself. Not under QEMU.
    pub fn status(&self) -> Result<Status> {
        match self.worker(Request::Status {})? {
            Reply::Status(status) => Ok(status),
            other => bail!("a request for the status was answered by {other:?}"),
        }
    }

    /// What the worker has counted. Not under QEMU.
    pub fn counters(&self) -> Result<Counters> {
        match self.worker(Request::Counters {})? {
            Reply::Counters(counters) => Ok(counters),
            other => bail!("a request for the counters was answered by {other:?}"),
        }
    }

    /// Makes a snapshot, on top of `parent` if there is one. Not under QEMU.
    pub fn snapshot(&self, name: &str, parent: Option<&str>) -> Result<SnapshotDone> {
        let request =
            Request::Snapshot { name: name.to_owned(), parent: parent.map(str::to_owned), disks: true };
        match self.ask(request)? {
            Reply::Snapshot(done) => Ok(done),
            other => bail!("a request for a snapshot was answered by {other:?}"),
        }
    }

    /// Has QEMU write the machine into a file, and returns how long the guest stood still for it; it does not
    /// go on. Only under QEMU.
    pub(crate) fn migrate_to_file(&self, file: &Path) -> Result<Duration> {
        let mut connection = self.connect()?;
        read_line(&mut connection)?;
        self.qmp_execute(&mut connection, json!({ "execute": "qmp_capabilities" }))?;
        let uri = format!("exec:cat > {}", file.display());
        let migrate = json!({ "execute": "migrate", "arguments": { "uri": uri } });
        self.qmp_execute(&mut connection, migrate)?;
        let deadline = Instant::now() + Patience::Boot.limit();
        loop {
            let reply = self.qmp_execute(&mut connection, json!({ "execute": "query-migrate" }))?;
            match reply["status"].as_str() {
                Some("completed") => {
                    let stopped = reply["downtime"].as_u64().context("QEMU does not tell of the stop")?;
                    return Ok(Duration::from_millis(stopped));
                }
                Some("failed" | "cancelled") => bail!("QEMU cannot save the machine: {reply}"),
                _ if Instant::now() > deadline => bail!("QEMU does not finish: {reply}"),
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Sends a request to the worker and returns its answer.
    ///
    /// # Errors
    /// If it is refused or not answered.
    pub fn ask(&self, request: Request) -> Result<Reply> {
        self.worker(request)
    }

    /// Sends a line as it is to the worker and returns the line that comes back.
    ///
    /// # Errors
    /// If there is no answer, or one that is no JSON.
    pub fn raw(&self, line: &str) -> Result<Value> {
        let mut connection = self.connect()?;
        writeln!(connection.get_mut(), "{line}")?;
        read_line(&mut connection)
    }

    /// Removes what a killed program leaves behind.
    pub(crate) fn forget(&self) {
        let _ = std::fs::remove_file(&self.socket);
    }

    fn order(&self, request: Request, qmp: &str) -> Result<()> {
        match self.dialect {
            Dialect::Worker => self.worker(request).map(drop),
            Dialect::Qmp => self.qmp(qmp).map(drop),
        }
    }

    fn worker(&self, request: Request) -> Result<Reply> {
        let line = serde_json::to_string(&RequestLine { id: None, version: None, request })?;
        let reply = self.raw(&line).with_context(|| format!("control request {line}"))?;
        let reply = ReplyLine::deserialize(&reply).with_context(|| format!("an unknown reply: {reply}"))?;
        match reply.result {
            ReplyResult::Ok(reply) => Ok(reply),
            ReplyResult::Error(error) => bail!("control request {line} was refused: {}", error.message),
        }
    }

    fn qmp(&self, command: &str) -> Result<Value> {
        let mut connection = self.connect()?;
        read_line(&mut connection)?;
        self.qmp_execute(&mut connection, json!({ "execute": "qmp_capabilities" }))?;
        self.qmp_execute(&mut connection, json!({ "execute": command }))
    }

    fn qmp_execute(&self, connection: &mut BufReader<UnixStream>, command: Value) -> Result<Value> {
        writeln!(connection.get_mut(), "{command}")?;
        loop {
            let reply = read_line(connection)?;
            if reply.get("event").is_none() {
                let done = reply.get("return").cloned();
                return done.with_context(|| format!("QEMU refused {command}: {reply}"));
            }
        }
    }

    /// Connects; the program may only just have been started.
    fn connect(&self) -> Result<BufReader<UnixStream>> {
        let limit = Patience::Host.limit();
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    if Instant::now() > deadline {
                        return Err(error)
                            .with_context(|| format!("no control socket {}", self.socket.display()));
                    }
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot connect to {}", self.socket.display()));
                }
            }
        };
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(BufReader::new(stream))
    }
}

fn read_line(connection: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    connection.read_line(&mut line).context("no reply on the control socket")?;
    serde_json::from_str(&line).with_context(|| format!("the reply is not JSON: {line:?}"))
}
