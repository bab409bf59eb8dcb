//! Host programs that builds call.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::progress::{self, Progress};
use crate::{Error, Result};

/// A program or file, and the Debian package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("tar", "tar"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];
/// What it takes besides without root: a view of file owners other than one's own.
const NEEDED_ROOTLESS: &[(&str, &str)] = &[("newuidmap", "uidmap"), ("fakeroot", "fakeroot")];

/// Debian packages that are missing on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTools(pub Vec<&'static str>);

impl MissingTools {
    /// The command that installs them.
    pub fn command(&self) -> String {
        let sudo = if is_root() { "" } else { "sudo " };
        format!("{sudo}apt-get install --yes --no-install-recommends {}", self.0.join(" "))
    }
}

/// What building a base of Debian packages would miss on this host.
pub fn missing_tools() -> Option<MissingTools> {
    let rootless = if is_root() { &[][..] } else { NEEDED_ROOTLESS };
    let absent = |(probe, _): &&(&str, &str)| {
        if probe.starts_with('/') { !Path::new(probe).exists() } else { find(probe).is_none() }
    };
    let missing: Vec<_> = NEEDED.iter().chain(rootless).filter(absent).map(|(_, package)| *package).collect();
    if missing.is_empty() { None } else { Some(MissingTools(missing)) }
}

/// Fails with the command to run if a tool is missing.
pub(super) fn require() -> Result<()> {
    match missing_tools() {
        None => Ok(()),
        Some(missing) => {
            Err(Error::failed("building an image from Debian packages takes programs that this host lacks")
                .with_remedy(format!("run: {}", missing.command())))
        }
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program in `PATH` or where system programs are.
fn find(program: &str) -> Option<PathBuf> {
    let path = search_path();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// A command of the host, found where users without root do not look either.
pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Runs a command, passing its lines on. If it is called off, the command is ended.
pub(super) fn run(command: &mut Command, progress: &mut dyn Progress) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error| Error::failed(format!("cannot run {name}")).with_source(error);
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let other = writer.try_clone().map_err(failed)?;
    let mut child = command.stdout(writer).stderr(other).spawn().map_err(failed)?;
    // Our own ends of the pipe, kept by the command.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (send, receive) = std::sync::mpsc::channel();
    let lines = thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        // A line without end is passed on in pieces.
        while matches!(Read::take(&mut reader, 4096).read_until(b'\n', &mut line), Ok(count) if count > 0) {
            if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    let mut last: Vec<String> = Vec::new();
    let cancelled = loop {
        match receive.recv_timeout(std::time::Duration::from_millis(200)) {
            Ok(line) => {
                progress.line(&line);
                last.push(line);
                if last.len() > 15 {
                    last.remove(0);
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
        }
        if let Err(error) = progress::check(progress) {
            break Err(error);
        }
    };
    if cancelled.is_err()
        && let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed())
    {
        // It ends what it started, and cleans up.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let status = child.wait().map_err(failed)?;
    let _ = lines.join();
    cancelled?;
    if status.success() {
        return Ok(());
    }
    Err(Error::failed(format!("{name} failed ({status}); it said last:\n  {}", last.join("\n  "))))
}
