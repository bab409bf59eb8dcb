//! Host programs that builds call.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::progress::{self, Progress};
use crate::{Error, Result};

/// A program or file, and the Debian package that brings it.
type Tool = (&'static str, &'static str);

/// What it takes to install Debian packages into a folder.
const FOR_DEBIAN: &[Tool] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];
/// The same without root.
const FOR_DEBIAN_ROOTLESS: &[Tool] = &[("newuidmap", "uidmap")];
/// What it takes to make a disk of an archive.
const FOR_DISKS: &[Tool] = &[("mke2fs", "e2fsprogs"), ("tar", "tar")];
/// The same without root: a view of file owners other than one's own.
const FOR_DISKS_ROOTLESS: &[Tool] = &[("fakeroot", "fakeroot")];

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
    missing(&[FOR_DEBIAN, FOR_DISKS], &[FOR_DEBIAN_ROOTLESS, FOR_DISKS_ROOTLESS])
}

fn missing(always: &[&'static [Tool]], rootless: &[&'static [Tool]]) -> Option<MissingTools> {
    let rootless = if is_root() { &[][..] } else { rootless };
    let absent = |(probe, _): &&Tool| {
        if probe.starts_with('/') { !Path::new(probe).exists() } else { find(probe).is_none() }
    };
    let tools = always.iter().chain(rootless).flat_map(|tools| *tools);
    let missing: Vec<_> = tools.filter(absent).map(|(_, package)| *package).collect();
    if missing.is_empty() { None } else { Some(MissingTools(missing)) }
}

/// Fails with the command to run if a tool for images of Debian packages is missing.
pub(crate) fn require_for_debian() -> Result<()> {
    require("building an image from Debian packages", missing_tools())
}

/// Fails with the command to run if a tool for making disks of archives is missing.
pub(crate) fn require_for_disks() -> Result<()> {
    require("making a disk of an archive", missing(&[FOR_DISKS], &[FOR_DISKS_ROOTLESS]))
}

fn require(what: &str, missing: Option<MissingTools>) -> Result<()> {
    match missing {
        None => Ok(()),
        Some(missing) => Err(Error::failed(format!("{what} takes programs that this host lacks"))
            .with_remedy(format!("run: {}", missing.command()))),
    }
}

pub(crate) fn is_root() -> bool {
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
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Runs a command, passing its lines on. If it is called off, the command is ended.
pub(crate) fn run(command: &mut Command, progress: &mut dyn Progress) -> Result<()> {
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
