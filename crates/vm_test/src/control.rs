//! The socket over which a running program is told what to do: JSON, a line each way.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
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
    /// `{"cmd": …}` and one reply.
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
    pub fn status(&self) -> Result<RunState> {
        let (command, field) = match self.dialect {
            Dialect::Worker => ("status", "state"),
            Dialect::Qmp => ("query-status", "status"),
        };
        let reply = self.call(command)?;
        let state = reply[field].as_str().with_context(|| format!("a status without state: {reply}"))?;
        Ok(match state {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            other => RunState::Other(other.to_owned()),
        })
    }

    /// Stops CPUs and clock.
    pub fn pause(&self) -> Result<()> {
        self.call(self.word("pause", "stop")).map(drop)
    }

    /// Lets them run on.
    pub fn resume(&self) -> Result<()> {
        self.call(self.word("resume", "cont")).map(drop)
    }

    /// Presses the power button.
    pub fn power(&self) -> Result<()> {
        self.call(self.word("power", "system_powerdown")).map(drop)
    }

    /// Ends the machine without asking it.
    pub fn stop(&self) -> Result<()> {
        self.call(self.word("stop", "quit")).map(drop)
    }

    /// The worker's counters.
    pub fn counters(&self) -> Result<Value> {
        if self.dialect == Dialect::Qmp {
            bail!("QEMU has no counters");
        }
        self.call("counters")
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

    fn word(&self, worker: &'static str, qmp: &'static str) -> &'static str {
        match self.dialect {
            Dialect::Worker => worker,
            Dialect::Qmp => qmp,
        }
    }

    fn call(&self, command: &str) -> Result<Value> {
        let reply = match self.dialect {
            Dialect::Worker => self.raw(&json!({ "cmd": command }).to_string()),
            Dialect::Qmp => self.qmp(command),
        };
        let reply = reply.with_context(|| format!("control command {command}"))?;
        match reply.get("error") {
            Some(error) if !error.is_null() => bail!("control command {command} was refused: {error}"),
            _ => Ok(reply),
        }
    }

    fn qmp(&self, command: &str) -> Result<Value> {
        let mut connection = self.connect()?;
        read_line(&mut connection)?;
        for execute in ["qmp_capabilities", command] {
            writeln!(connection.get_mut(), "{}", json!({ "execute": execute }))?;
            loop {
                let reply = read_line(&mut connection)?;
                if reply.get("event").is_some() {
                    continue;
                }
                if execute == command {
                    return Ok(reply.get("return").cloned().unwrap_or(reply));
                }
                break;
            }
        }
        unreachable!("the loop returns with the last command's reply")
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
