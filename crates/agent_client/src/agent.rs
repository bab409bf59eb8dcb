//! The agent of one guest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use api::agent::shares::ShareReport;
use api::agent::{
    ExecParams, Exit, Freeze, Info, Interface, PORT, Personality, PersonalityReport, Reply, Request,
    ShutdownMode, WindowSize,
};

use crate::connection::{Connection, mismatch};
use crate::error::{Error, ErrorKind};
use crate::exec::{Exec, ExecEvent, ExecOutput};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// And one of work that takes its time: making keys and users, removing logs.
const TIMEOUT_LONG: Duration = Duration::from_secs(300);
/// Pauses between tries to reach an agent that is not up yet.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How long a program may run that [`Agent::run`] waits for, if nothing else is said.
const RUN_LIMIT: Duration = Duration::from_secs(600);
/// Output of a program that [`Agent::run`] keeps, in bytes.
const OUTPUT_LEN_MAX: usize = 16 << 20;

/// The agent of one guest. Cheap; holds no connection.
#[derive(Clone, Debug)]
pub struct Agent {
    endpoint: Endpoint,
    timeout: Duration,
}

/// Where an agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Through the worker's socket of a guest (`VsockConfig::socket`).
    Worker(PathBuf),
    /// At a Unix socket where it listens itself; for tests.
    Direct(PathBuf),
}

/// A program to run, with what it reads.
#[derive(Clone, Debug)]
pub struct Command {
    /// What to run.
    pub params: ExecParams,
    /// Its standard input.
    pub input: Vec<u8>,
    /// How long [`Agent::run`] lets it run. One that was started by [`Agent::exec`] has no limit.
    pub limit: Duration,
}

impl Command {
    /// A program with its arguments, as root, without a terminal and with nothing to read. It may run for ten minutes.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Command {
        let command = command.into_iter().map(Into::into).collect();
        let params = ExecParams { command, ..ExecParams::default() };
        Command { params, input: Vec::new(), limit: RUN_LIMIT }
    }

    /// A command line for `sh -c`.
    pub fn shell(line: impl Into<String>) -> Command {
        Command::new(["sh".to_owned(), "-c".to_owned(), line.into()])
    }

    /// Gives it this to read.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Command {
        self.input = input.into();
        self
    }

    /// Lets it run for so long.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Command {
        self.limit = limit;
        self
    }

    /// Gives it a terminal.
    #[must_use]
    pub fn terminal(mut self, size: WindowSize) -> Command {
        self.params.terminal = Some(size);
        self
    }

    /// Runs it as this user.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Command {
        self.params.user = Some(user.into());
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn environment(mut self, environment: BTreeMap<String, String>) -> Command {
        self.params.environment = environment;
        self
    }
}

/// How a program ended and what it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output, or all of its terminal's.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Its standard output as text, without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

impl Agent {
    /// The agent of the guest whose virtio socket a worker offers at this path.
    pub fn of_worker(socket: impl Into<PathBuf>) -> Agent {
        Agent::new(Endpoint::Worker(socket.into()))
    }

    /// The agent at an endpoint.
    pub fn new(endpoint: Endpoint) -> Agent {
        Agent { endpoint, timeout: TIMEOUT }
    }

    pub(crate) fn connect(&self, timeout: Duration) -> Result<Connection, Error> {
        match &self.endpoint {
            Endpoint::Worker(path) => Connection::through_worker(path, PORT, timeout),
            Endpoint::Direct(path) => Connection::direct(path, timeout),
        }
    }

    /// The path of its socket on the host.
    pub fn socket(&self) -> &Path {
        match &self.endpoint {
            Endpoint::Worker(path) | Endpoint::Direct(path) => path,
        }
    }

    pub(crate) fn ask(&self, request: Request) -> Result<Reply, Error> {
        self.connect(self.timeout)?.request(request)
    }

    fn ask_long(&self, request: Request) -> Result<Reply, Error> {
        self.connect(TIMEOUT_LONG)?.request(request)
    }

    /// Whether it takes connections. Says no more than that, and costs less than [`Agent::info`].
    ///
    /// # Errors
    /// [`ErrorKind::NotReady`] if it does not.
    pub fn answers(&self) -> Result<(), Error> {
        self.connect(self.timeout).map(drop)
    }

    /// What the guest is. Fails with [`ErrorKind::NotReady`] while it has no agent that answers.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn info(&self) -> Result<Info, Error> {
        match self.ask(Request::Info {})? {
            Reply::Info(info) => Ok(info),
            other => Err(mismatch(&other)),
        }
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// [`ErrorKind::NotReady`] if it does not within `limit`; any other error at once.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<Info, Error> {
        let deadline = Instant::now() + limit;
        let mut pause = RETRY.0;
        loop {
            // A guest that is coming up may take a connection and lose it again.
            let brief = self.timeout.min(Duration::from_secs(5));
            let tried = self.connect(brief).and_then(|mut connection| connection.request(Request::Info {}));
            match tried {
                Ok(Reply::Info(info)) => return Ok(info),
                Ok(other) => return Err(mismatch(&other)),
                Err(error)
                    if !matches!(error.kind(), ErrorKind::NotReady | ErrorKind::Io | ErrorKind::TimedOut) =>
                {
                    return Err(error);
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Makes the guest another machine, as soon as its agent answers.
    ///
    /// # Errors
    /// [`ErrorKind::NotReady`] if it does not within `limit`; any other error at once.
    pub fn take_personality_when_ready(
        &self,
        personality: &Personality,
        limit: Duration,
    ) -> Result<PersonalityReport, Error> {
        let deadline = Instant::now() + limit;
        let mut pause = RETRY.0;
        loop {
            // Taking it twice is as good as once.
            let taken = self.ask(Request::Personality(Box::new(personality.clone())));
            let taken = taken.and_then(|reply| match reply {
                Reply::Personality(report) => Ok(report),
                other => Err(mismatch(&other)),
            });
            match taken {
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotReady | ErrorKind::Io)
                        && Instant::now() < deadline =>
                {
                    thread::sleep(pause);
                    pause = (pause * 2).min(RETRY.1);
                }
                result => return result,
            }
        }
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if it cannot be started, else see [`ErrorKind`].
    pub fn exec(&self, params: &ExecParams) -> Result<Exec, Error> {
        let mut connection = self.connect(self.timeout)?;
        match connection.request(Request::Exec(params.clone()))? {
            Reply::Started => Exec::new(connection),
            other => Err(mismatch(&other)),
        }
    }

    /// Runs a program to its end, and hangs up on it if that does not come within the command's limit.
    ///
    /// # Errors
    /// As [`Agent::exec`]; [`ErrorKind::TimedOut`] if it has not ended by then, and [`ErrorKind::Protocol`] if it writes
    /// more than 16 MiB.
    pub fn run(&self, command: &Command) -> Result<Finished, Error> {
        let mut exec = self.exec(&command.params)?;
        exec.end_within(command.limit);
        let (mut input, output) = exec.split();
        thread::scope(|scope| {
            // The program may write before it has read all: one hand for each.
            scope.spawn(move || {
                // If it does not want all of its input, that shows in how it ends.
                let _ = input.write(&command.input).and_then(|()| input.close());
            });
            // By value: given up in here, it ends the other hand, too, which is waited for at the end of the scope.
            collect(output)
        })
        .map_err(|error| match error.kind() {
            ErrorKind::TimedOut => {
                let seconds = command.limit.as_secs_f32();
                let text = format!("the program in the guest has not ended within {seconds} s");
                Error::new(ErrorKind::TimedOut, text)
            }
            _ => error,
        })
    }

    /// Asks the guest to shut down. It has heard it when this returns; it has not done it.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn shutdown(&self, mode: ShutdownMode, force: bool) -> Result<(), Error> {
        done(&self.ask(Request::Shutdown { mode, force })?)
    }

    /// Freezes the guest's file systems; they thaw by themselves after `limit`.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn freeze(&self, limit: Duration) -> Result<Freeze, Error> {
        let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        // Writing out what is dirty takes as long as the disk takes.
        match self.ask_long(Request::Freeze { timeout_ms })? {
            Reply::Frozen(freeze) => Ok(freeze),
            other => Err(mismatch(&other)),
        }
    }

    /// Thaws them.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn thaw(&self) -> Result<(), Error> {
        match self.ask(Request::Thaw {})? {
            Reply::Frozen(_) => Ok(()),
            other => Err(mismatch(&other)),
        }
    }

    /// The guest's network cards.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        match self.ask(Request::Interfaces {})? {
            Reply::Interfaces { interfaces } => Ok(interfaces),
            other => Err(mismatch(&other)),
        }
    }

    /// Makes the guest another machine: after a clone or a restore.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the personality asks for what cannot be; what could not be done is in the
    /// report.
    pub fn take_personality(&self, personality: &Personality) -> Result<PersonalityReport, Error> {
        match self.ask_long(Request::Personality(Box::new(personality.clone())))? {
            Reply::Personality(report) => Ok(report),
            other => Err(mismatch(&other)),
        }
    }

    /// Has the guest mount the folders of the host that its machine shows, and says what became of each.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if it cannot mount any, else see [`ErrorKind`].
    pub fn mount_shares(&self) -> Result<Vec<ShareReport>, Error> {
        match self.ask(Request::MountShares {})? {
            Reply::Shares { shares } => Ok(shares),
            other => Err(mismatch(&other)),
        }
    }

    /// Has the guest unmount one; with `force` although somebody uses it.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if somebody does, else see [`ErrorKind`].
    pub fn unmount_share(&self, name: &str, force: bool) -> Result<(), Error> {
        done(&self.ask(Request::UnmountShare { name: name.to_owned(), force })?)
    }

    /// Makes the guest forget who it is. Shut it down afterwards; its disk is a template then.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn generalise(&self) -> Result<(), Error> {
        done(&self.ask_long(Request::Generalise {})?)
    }
}

/// Takes all that a program writes, to its end.
fn collect(mut output: ExecOutput) -> Result<Finished, Error> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match output.next_event()? {
            ExecEvent::Stdout(bytes) => stdout.extend(bytes),
            ExecEvent::Stderr(bytes) => stderr.extend(bytes),
            ExecEvent::Exited(exit) => return Ok(Finished { exit, stdout, stderr }),
        }
        if stdout.len() + stderr.len() > OUTPUT_LEN_MAX {
            return Err(Error::protocol("the program wrote more than 16 MiB; take it piece by piece"));
        }
    }
}

pub(crate) fn done(reply: &Reply) -> Result<(), Error> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(mismatch(other)),
    }
}
