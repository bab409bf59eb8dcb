//! A running machine.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Console, Control, Guest, Patience, Program, worker_path};

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit status, if it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it otherwise.
    pub signal: Option<i32>,
    /// What it wrote on its standard error.
    pub stderr: String,
}

impl Exit {
    /// Fails unless the status is this one.
    ///
    /// # Errors
    /// If it is another, with what the program had to say.
    pub fn expect_code(&self, code: i32) -> Result<()> {
        if self.code != Some(code) {
            let how =
                self.signal.map_or(format!("status {:?}", self.code), |signal| format!("signal {signal}"));
            bail!("the program ended with {how} instead of {code}; its messages:\n{}", self.stderr);
        }
        Ok(())
    }
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    child: KillOnDrop,
    console: Console,
    control: Control,
    started: Instant,
    stderr: PathBuf,
}

impl Vm {
    pub(crate) fn start(guest: &Guest, program: &Program, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // Sockets have short path limits, and must not be found by a later run.
        let control =
            std::env::temp_dir().join(format!("arnia-{}-{}.sock", std::process::id(), serial_number()));
        let command = guest.command(program, &control)?;
        Vm::launch(command, program, control, folder)
    }

    /// Starts a machine that goes on from a snapshot, with further options of the worker.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn restore(program: &Program, snapshot: &Path, options: &[OsString], folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let control =
            std::env::temp_dir().join(format!("arnia-{}-{}.sock", std::process::id(), serial_number()));
        let Program::Worker(engine) = program else { bail!("{program} has no snapshots of this form") };
        let mut command = Command::new(worker_path()?);
        // It was made by this harness, which knows what it names.
        command
            .arg("--restore")
            .arg(snapshot)
            .args(["--allow", "/"])
            .args(options)
            .args(["--serial", "stdio"]);
        command.arg("--engine").arg(engine.to_string()).arg("--control").arg(&control);
        Vm::launch(command, program, control, folder)
    }

    /// Starts QEMU with a machine that goes on from what [`Control::migrate_to_file`] has written.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub(crate) fn incoming(guest: &Guest, file: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let control =
            std::env::temp_dir().join(format!("arnia-{}-{}.sock", std::process::id(), serial_number()));
        let mut command = guest.command(&Program::Qemu, &control)?;
        command.arg("-incoming").arg(format!("exec:cat {}", file.display()));
        Vm::launch(command, &Program::Qemu, control, folder)
    }

    fn launch(mut command: Command, program: &Program, control: PathBuf, folder: &Path) -> Result<Self> {
        fs::write(folder.join("command"), format!("{command:?}\n"))?;
        let log = File::create(folder.join("console.log"))?;
        let stderr = folder.join("stderr.log");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&stderr)?);
        let started = Instant::now();
        let mut child = KillOnDrop(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
        let (input, output) = (child.0.stdin.take(), child.0.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { bail!("the program has no console") };
        let console = Console::new(input, output, log);
        Ok(Self { child, console, control: Control::new(program, &control), started, stderr })
    }

    /// Its serial console.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Its control socket.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The program's process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// When the program was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Sends the program the signal that service managers stop programs by.
    ///
    /// # Errors
    /// If the process cannot be signalled.
    pub fn terminate(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.0.id().cast_signed()).context("a process has a number")?;
        kill_process(pid, Signal::TERM).context("cannot signal the program")
    }

    /// Waits for the program to end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(&mut self, patience: Patience) -> Result<Exit> {
        let deadline = Instant::now() + patience.limit();
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
            if Instant::now() > deadline {
                bail!("the program did not end within {} s", patience.limit().as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// How the program has ended, if it has.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn try_wait(&mut self) -> Result<Option<Exit>> {
        let Some(status) = self.child.0.try_wait()? else { return Ok(None) };
        let stderr = String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned();
        Ok(Some(Exit { code: status.code(), signal: status.signal(), stderr }))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.control.forget();
    }
}

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only for a child that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A TCP port of the loopback that was free a moment ago.
///
/// # Errors
/// If the host has none left.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn serial_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
