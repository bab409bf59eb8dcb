//! The process of a worker, its own child or one that an earlier daemon has left.

use super::{Folder, Start};
use crate::util;
use api::worker::exit::{self, Report};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A worker's process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
    /// To be waited for, if it is ours.
    child: Mutex<Option<Child>>,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest wanted it: powered off, or reset where that ends the machine.
    ByGuest(&'static str),
    /// Somebody wanted it.
    Stopped,
    /// The worker says that it could not be, or could not go on.
    Failed(String),
    /// The guest crashed.
    Crashed(String),
    /// The worker left no report: it was killed.
    Killed,
    /// The host has been started anew since.
    HostRestarted,
}

impl Process {
    /// Starts a worker in `folder`, which must have none.
    pub(crate) fn start(program: &Path, folder: &Folder, config: &Start, log: &Path) -> io::Result<Process> {
        let stale = ["report", "control", "console", "vsock", "qemu-agent"];
        let config_path = folder.file("worker.json");
        let mut command = Command::new(program);
        command.arg("--config").arg(&config_path);
        Process::spawn(command, folder, &stale, (&config_path, &config.to_json()?), log)
    }

    /// Starts the process of a network in `folder`, which must have none. Its configuration is there.
    pub(crate) fn start_switch(
        program: &Path,
        folder: &Folder,
        config: (&Path, &[u8]),
    ) -> io::Result<Process> {
        let mut command = Command::new(program);
        command.arg("switch").arg("--config").arg(config.0);
        Process::spawn(command, folder, &["ports"], config, &folder.file("log"))
    }

    /// Starts the file server of a share in `folder`, which must have none.
    pub(crate) fn start_file_server(
        program: &Path,
        folder: &Folder,
        config: (&Path, &[u8]),
    ) -> io::Result<Process> {
        let mut command = Command::new(program);
        command.arg("file-server").arg("--config").arg(config.0);
        Process::spawn(command, folder, &["socket"], config, &folder.file("log"))
    }

    /// Starts a process that goes on without this one. `stale` names what an earlier one may have left.
    fn spawn(
        mut command: Command,
        folder: &Folder,
        stale: &[&str],
        (config_path, config): (&Path, &[u8]),
        log: &Path,
    ) -> io::Result<Process> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder.path())?;
        let lock = File::create(folder.file("lock"))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(io::Error::other("its earlier process has not ended yet"));
        }
        for stale in stale {
            match std::fs::remove_file(folder.file(stale)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::write(folder.file("boot"), util::boot_id())?;
        let mut config_file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(config_path)?;
        config_file.write_all(config)?;
        let log = File::options().write(true).create(true).truncate(true).mode(0o600).open(log)?;
        // The lock goes with the descriptor: it is held until the worker's last copy is closed.
        command.current_dir("/").stdin(lock).stdout(Stdio::null()).stderr(log);
        // A Ctrl-C at the daemon's terminal is not for guests.
        command.process_group(0);
        let child = command.spawn()?;
        Process::new(child.id(), Some(child))
    }

    /// Takes over a process. It must be known to live until this returns.
    pub(crate) fn new(pid: u32, child: Option<Child>) -> io::Result<Process> {
        let raw = Pid::from_raw(pid as i32).ok_or_else(|| io::Error::other("a process without a number"))?;
        let fd = pidfd_open(raw, PidfdFlags::empty())?;
        // SAFETY: the descriptor is owned, so it stays open as long as it is registered, and nobody swaps it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Process { pid, fd, child: Mutex::new(child) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(&self) {
        // A pidfd is readable from the end on, so that any number may wait.
        let _ = self.fd.readable().await;
        if let Ok(mut child) = self.child.lock()
            && let Some(mut child) = child.take()
        {
            let _ = child.wait();
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(self.fd.get_ref(), Signal::KILL);
    }
}

/// Whether a worker lives in `folder`.
pub(crate) fn lives(folder: &Folder) -> bool {
    match File::open(folder.file("lock")) {
        Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(_) => false,
    }
}

/// How the machine ended whose worker was in `folder` and lives no more.
pub(crate) fn ending(folder: &Folder) -> Ending {
    let boot = std::fs::read_to_string(folder.file("boot")).unwrap_or_default();
    if boot != util::boot_id() {
        return Ending::HostRestarted;
    }
    let report = std::fs::read(folder.file("report")).unwrap_or_default();
    let Ok(report) = serde_json::from_slice::<Report>(&report) else { return Ending::Killed };
    let message = report.message.unwrap_or_else(|| format!("exit status {}", report.status));
    match report.status {
        exit::POWERED_OFF => Ending::ByGuest("the guest powered off"),
        exit::RESET => Ending::ByGuest("the guest reset the machine"),
        exit::STOPPED => Ending::Stopped,
        exit::CRASHED => Ending::Crashed(message),
        _ => Ending::Failed(message),
    }
}

/// What a worker said last on standard error, without its name before each line.
pub(crate) fn last_words(log: &Path) -> String {
    /// More than this nobody wants to read.
    const LEN_MAX: u64 = 4096;
    let mut text = String::new();
    if let Ok(file) = File::open(log) {
        let _ = file.take(LEN_MAX).read_to_string(&mut text);
    }
    let last = text.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
    last.trim_start_matches("arnia-vmm: ").to_owned()
}
