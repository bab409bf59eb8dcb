//! The program `arnia` and a daemon of its own, whose things are in a folder that goes with it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::agent::AgentFiles;
use crate::{Artifacts, KillOnDrop, Patience};

/// How often something is looked at that gives no sign when it is done.
const INTERVAL: Duration = Duration::from_millis(50);
/// Size of the tiny image's disk, which is empty.
const TINY_DISK: u64 = 16 << 20;

/// Commands of `arnia` for one daemon. Dropping it ends the daemon and all its machines.
#[derive(Debug)]
pub struct Arnia {
    program: OsString,
    home: PathBuf,
    /// A folder of images that outlives it.
    images: Option<PathBuf>,
}

impl Arnia {
    /// The name of the image that [`Arnia::import_tiny`] makes.
    pub const TINY: &str = "tiny:1";

    /// A daemon of its own, which starts with the first command.
    ///
    /// # Errors
    /// If `ARNIA_PROGRAM` is not set.
    pub fn new() -> Result<Arnia> {
        let program = std::env::var_os("ARNIA_PROGRAM")
            .context("ARNIA_PROGRAM is not set; run it by `cargo xtask test`")?;
        // Not in a test's own folder: paths of sockets must be short.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let home = std::env::temp_dir().join(format!("arnia-boot-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        Ok(Arnia { program, home, images: None })
    }

    /// The same with images that are kept in this folder.
    #[must_use]
    pub fn with_images(mut self, folder: &Path) -> Arnia {
        self.images = Some(folder.to_owned());
        self
    }

    /// Its folder, `ARNIA_HOME`.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The program's path.
    pub fn program(&self) -> std::borrow::Cow<'_, str> {
        self.program.to_string_lossy()
    }

    /// A command to be started, with nothing to read.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("ARNIA_HOME", &self.home).stdin(Stdio::null());
        // Whom the user of this host trusts is nothing to a test.
        command.env("XDG_CONFIG_HOME", self.home.join("config"));
        if let Some(images) = &self.images {
            command.env("ARNIA_IMAGES", images);
        }
        if let Ok(agent) = AgentFiles::from_env() {
            // To the harness, the variable names a folder.
            command.env("ARNIA_AGENT", agent.program());
        }
        command
    }

    /// Runs a command to its end, however that is.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn try_run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments).output()?)
    }

    /// Runs a command that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_run(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "arnia {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Runs a command and reads what it prints.
    ///
    /// # Errors
    /// If it fails or prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Waits until the guest has written this on its console.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn expect(&self, name: &str, text: &str, patience: Patience) -> Result<()> {
        let seen = self.wait(patience, || Ok(self.run(&["logs", name])?.contains(text)));
        seen.with_context(|| {
            format!("{text:?} has not come; the log is:\n{}", self.run(&["logs", name]).unwrap_or_default())
        })
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// If it is not in time, or cannot be found out.
    pub fn wait(&self, patience: Patience, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        while !is_so()? {
            if started.elapsed() > patience.limit() {
                bail!("not within {} s", patience.limit().as_secs());
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Starts the daemon in the foreground and waits until it answers. Returns how long that took, too.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn start_daemon(&self) -> Result<(KillOnDrop, Duration)> {
        let log = std::fs::File::options().create(true).append(true).open(self.home.join("daemon.log"))?;
        let mut command = self.command(&["daemon"]);
        let started = Instant::now();
        let mut child = KillOnDrop(command.stdout(Stdio::null()).stderr(log).spawn()?);
        while self.http("GET", "/v1/host", None).is_err() {
            ensure!(child.0.try_wait()?.is_none(), "the daemon has ended; why is in {:?}", self.home);
            ensure!(started.elapsed() < Patience::Host.limit(), "the daemon does not answer");
            thread::sleep(Duration::from_millis(1));
        }
        Ok((child, started.elapsed()))
    }

    /// Kills the daemon, at once. The next command starts another.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill_daemon(&self) -> Result<()> {
        let (_, host) = self.http("GET", "/v1/host", None)?;
        kill(host["pid"].as_i64().context("a process")?)
    }

    /// Kills the processes that this daemon has started as `arnia VERB`; returns how many there were.
    ///
    /// # Errors
    /// If the host does not say what runs.
    pub fn kill_helpers(&self, verb: &str) -> Result<usize> {
        let home = self.home.to_string_lossy().into_owned();
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            if words.get(1).is_some_and(|word| word == verb) && words.iter().any(|word| word.contains(&home))
            {
                kill_process(Pid::from_raw(pid).context("a process")?, Signal::KILL)?;
                killed += 1;
            }
        }
        Ok(killed)
    }

    /// Sends one request to the daemon that runs; returns the status and what came.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let (status, text) = self.exchange(method, path, body)?;
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    /// What the daemon that runs has at a path, as text.
    ///
    /// # Errors
    /// If it is not there.
    pub fn text(&self, path: &str) -> Result<String> {
        match self.exchange("GET", path, None)? {
            (200, text) => Ok(text),
            (status, text) => bail!("{path} is answered by {status}: {text}"),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = UnixStream::connect(self.home.join("run/arnia.sock"))?;
        stream.set_read_timeout(Some(Patience::Host.limit()))?;
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: arnia\r\nConnection: close\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("the daemon hung up")?;
        let status = head.split(' ').nth(1).context("the answer has no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Removes the machines and networks of all projects.
    fn remove_all(&self) {
        let names = |arguments: &[&str]| {
            let found = self.json(arguments).unwrap_or_default();
            let names = found.as_array().into_iter().flatten().filter_map(|thing| thing["name"].as_str());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        for project in names(&["project", "ls"]) {
            for vm in names(&["--project", &project, "ls"]) {
                let _ = self.try_run(&["--project", &project, "rm", "--force", &vm]);
            }
            for network in names(&["--project", &project, "network", "ls"]) {
                let _ = self.try_run(&["--project", &project, "network", "rm", &network]);
            }
        }
    }

    /// Makes an image of the busybox guest with the agent in it and an empty disk: it boots in moments.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn import_tiny(&self, artifacts: &Artifacts) -> Result<()> {
        let disk = self.home.join("tiny.raw");
        std::fs::File::create(&disk)?.set_len(TINY_DISK)?;
        self.import_guest(artifacts, Arnia::TINY, &disk)
    }

    /// Makes an image of the busybox guest with the agent in it and this raw disk.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn import_guest(&self, artifacts: &Artifacts, name: &str, disk: &Path) -> Result<()> {
        let initrd = AgentFiles::from_env()?.initramfs();
        let (kernel, initrd) = (artifacts.kernel.image.to_string_lossy(), initrd.to_string_lossy());
        let append = "console=ttyS0 panic=-1 arnia.test=agent arnia.end=idle";
        self.run(&[
            "image",
            "import",
            &disk.to_string_lossy(),
            "--name",
            name,
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--append",
            append,
            "--personality",
            "agent",
        ])?;
        Ok(())
    }
}

/// Ends a process at once.
///
/// # Errors
/// If there is none.
pub fn kill(pid: i64) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no number of a process")?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    kill_process(pid, Signal::KILL)?;
    // Until it has ended, it may still take connections that nobody will answer.
    let limit = Timespec { tv_sec: Patience::Host.limit().as_secs() as i64, tv_nsec: 0 };
    ensure!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))? == 1, "{pid:?} does not end");
    Ok(())
}

impl Drop for Arnia {
    fn drop(&mut self) {
        // Only what a daemon has been asked for can be there.
        if self.home.join("data").exists() {
            self.remove_all();
        }
        let _ = self.kill_daemon();
        for verb in ["switch", "file-server"] {
            let _ = self.kill_helpers(verb);
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }
}
