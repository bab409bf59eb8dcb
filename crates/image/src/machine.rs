//! Virtual machines that do work for the image library: what is a guest's is read and changed in a guest, never on the host.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as HostCommand, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent_client::{Agent, Command, ExecEvent};
use api::ByteSize;
use api::agent::{Exit, ShutdownMode};
use api::image::Blob;
use api::worker::config::{CharDevice, DiskConfig, NetConfig, OnReset, UserNetConfig, VmConfig, VsockConfig};

use crate::error::AboutFile;
use crate::files::RemoveUnlessKept;
use crate::progress::{self, Progress};
use crate::{Error, ErrorKind, Result, Session};

/// How long the machine may take to boot: engines in software on busy hosts take their time.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// And to shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(300);
/// Memory of the machine.
const MEMORY: ByteSize = ByteSize(1 << 30);
/// How much of the console is shown when the machine fails.
const CONSOLE_TAIL: u64 = 2000;

/// What a machine shall be: a system with the guest agent, on the first disk.
pub(crate) struct Wanted<'a> {
    pub(crate) kernel: &'a Blob,
    pub(crate) initrd: Option<&'a Blob>,
    pub(crate) append: &'a str,
    pub(crate) disks: Vec<DiskConfig>,
    /// vCPUs; 0 is one.
    pub(crate) cpus: u32,
    /// Whether it has a network card.
    pub(crate) network: bool,
}

/// A virtual machine at work. Dropping it ends it.
pub(crate) struct Machine {
    child: Child,
    /// Its agent.
    pub(crate) agent: Agent,
    console: PathBuf,
    messages: PathBuf,
    _socket: RemoveUnlessKept,
}

impl Machine {
    /// Starts one by a worker, with its console and messages in a folder.
    pub(crate) fn start(
        session: &Session<'_>,
        wanted: Wanted<'_>,
        folder: &Path,
        worker: &Path,
    ) -> Result<Machine> {
        // Sockets have short path limits, and the store's folder may lie deep.
        let socket =
            std::env::temp_dir().join(format!("arnia-work-{}-{}", std::process::id(), disk_number(folder)));
        let (console, messages) = (folder.join("console.log"), folder.join("messages.log"));
        let mut config = VmConfig::new(session.store().blob_path(wanted.kernel)?);
        config.initrd = wanted.initrd.map(|initrd| session.store().blob_path(initrd)).transpose()?;
        config.append = format!("{} panic=-1", wanted.append);
        config.cpus = wanted.cpus.max(1);
        config.memory = MEMORY;
        config.on_reset = OnReset::Exit;
        config.serial = CharDevice::File(console.clone());
        config.vsock = Some(VsockConfig { cid: 3, socket: socket.clone() });
        if wanted.network {
            config.nets = vec![NetConfig::User(UserNetConfig::default())];
        }
        config.disks = wanted.disks;
        let path = folder.join("machine.json");
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|error| Error::failed("cannot describe the machine").with_source(error))?;
        fs::write(&path, text).about("write", &path)?;
        let errors = File::create(&messages).about("create", &messages)?;
        let mut command = HostCommand::new(worker);
        command.arg("--config").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        // A machine of work that was killed is of no use to anybody.
        let end_with_parent =
            || Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?);
        // SAFETY: between fork and exec it makes one system call and nothing else.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, end_with_parent) };
        let child = command.spawn().about("start", worker)?;
        let agent = Agent::of_worker(&socket);
        Ok(Machine { child, agent, console, messages, _socket: RemoveUnlessKept::new(&socket) })
    }

    pub(crate) fn wait_until_ready(&self, progress: &mut dyn Progress) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        loop {
            progress::check(progress)?;
            match self.agent.wait_until_ready(Duration::from_secs(1)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(Error::failed("the virtual machine does not come up").with_source(error));
                }
                Err(_) => {}
            }
            // The child's state says at once what a wait would find out late.
            if self.has_ended() {
                return Err(Error::failed("the virtual machine ended while it booted"));
            }
        }
    }

    fn has_ended(&self) -> bool {
        rustix::process::Pid::from_raw(self.child.id().cast_signed()).is_none_or(|pid| {
            let options = rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOHANG
                | rustix::process::WaitIdOptions::NOWAIT;
            !matches!(rustix::process::waitid(rustix::process::WaitId::Pid(pid), options), Ok(None))
        })
    }

    /// Shuts the machine down in order, so that its disk is whole.
    fn finish(&mut self, progress: &mut dyn Progress) -> Result<()> {
        progress.begin("shutting the machine down", None);
        let failed = |error| Error::failed("cannot shut the machine down").with_source(error);
        self.agent.shutdown(ShutdownMode::Poweroff, false).map_err(failed)?;
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        loop {
            progress::check(progress)?;
            let status = self
                .child
                .try_wait()
                .map_err(|error| Error::failed("the worker was lost").with_source(error))?;
            match status {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(Error::failed(format!("the virtual machine failed ({status})"))),
                None if Instant::now() > deadline => {
                    return Err(Error::failed("the machine does not shut down"));
                }
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits until the system in the machine has started, with its network if it has one. Commands that need none must not
    /// fail for lack of it.
    pub(crate) fn wait_until_online(&self, progress: &mut dyn Progress) -> Result<()> {
        progress.begin("waiting for the machine's network", None);
        run_command(&self.agent, "systemctl is-system-running --wait >/dev/null 2>&1 || true", progress)
            .map(drop)
    }

    /// Has work done in the machine and shuts it down, so that what was written to its disks is whole.
    ///
    /// # Errors
    /// If the work fails or the machine does, with the last that came from it.
    pub(crate) fn carry_out(
        mut self,
        progress: &mut dyn Progress,
        work: impl FnOnce(&Machine, &mut dyn Progress) -> Result<()>,
    ) -> Result<()> {
        progress.begin("booting a virtual machine", None);
        let ready = self.wait_until_ready(progress);
        let done = ready.and_then(|()| work(&self, progress)).and_then(|()| self.finish(progress));
        done.map_err(|error| self.explain(error))
    }

    fn console_tail(&self) -> String {
        let tail = |path: &Path| -> std::io::Result<String> {
            let mut file = File::open(path)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(CONSOLE_TAIL)))?;
            let mut bytes = Vec::new();
            file.take(CONSOLE_TAIL).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
        };
        [&self.messages, &self.console].map(|path| tail(path).unwrap_or_default()).join("")
    }

    /// The error, with the last that came from the machine if it has ended by itself.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Cancelled || !self.has_ended() {
            return error;
        }
        let console = self.console_tail();
        if !console.trim().is_empty() {
            let text = format!("{error}; the last that came from it:\n{}", console.trim_end());
            return Error::new(error.kind(), text);
        }
        error
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number that makes the work's folder a folder of its own.
fn disk_number(folder: &Path) -> String {
    folder
        .file_name()
        .and_then(|name| name.to_str()?.rsplit('-').next().map(str::to_owned))
        .unwrap_or_default()
}

/// Runs a command, passing on what it says. Returns how it ended and its last lines.
pub(crate) fn run_command(
    agent: &Agent,
    command: &str,
    progress: &mut dyn Progress,
) -> Result<(Exit, String)> {
    let failed = |error: agent_client::Error| Error::failed("the machine was lost").with_source(error);
    let params = Command::new(["sh", "-eu", "-c", command]).params;
    let (mut input, mut output) = agent.exec(&params).map_err(failed)?.split();
    input.close().map_err(failed)?;
    let mut last: Vec<String> = Vec::new();
    let mut line = Vec::new();
    loop {
        progress::check(progress)?;
        let bytes = match output.next_event().map_err(failed)? {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => bytes,
            ExecEvent::Exited(exit) => {
                last.extend((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()));
                return Ok((exit, last.join("\n  ")));
            }
        };
        for byte in bytes {
            if byte != b'\n' && line.len() < 4096 {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            progress.line(&text);
            last.push(text);
            if last.len() > 15 {
                last.remove(0);
            }
            line.clear();
        }
    }
}
