//! Files of a guest that has QEMU's agent.
//!
//! The agent moves bytes (`guest-file-open` and its kin) and has nothing to list a folder, to make a link, or to tell what
//! is at a path: for that, programs run in the guest which every Linux has (`sh`, `stat`, `find`, `mktemp`, those of
//! coreutils or busybox). Every step makes a connection of its own, so that other clients get their turn in between.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use api::agent::{AgentErrorKind, Attributes, Entry, Exit, FileKind};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::answer::{self, FileRead, FileWritten};
use super::{Limits, Qga, nonsense};
use crate::error::{Error, ErrorKind};
use crate::files::{self, FileAttributes, GuestFiles, Listing};

/// Bytes of a file in one message: base64 and the serial line make that some milliseconds.
const CHUNK_LEN: usize = 256 * 1024;
/// How long a script may take: making a file safe on a slow disk is the longest.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

/// `st_mode` (inode(7)): the kind of a file.
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// What is at a path: a line of numbers and, for a symbolic link, where it leads.
const STAT: &str = r#"follow=; [ "$1" = follow ] && follow=-L
stat $follow -c '%f %u %g %s %Y' "$0" || exit
if [ -z "$follow" ] && [ -h "$0" ]; then readlink "$0"; fi"#;
/// What is in a folder: a line for each entry, a zero byte, then names and targets of links. No name has a slash, so that
/// the two before one tell where it begins, even if it has line ends.
const LIST: &str = r#"stat -L -c '' "$0" >/dev/null || exit
if ! [ -d "$0" ]; then echo "$0: Not a directory" >&2; exit 1; fi
cd "$0" || exit
find .// -mindepth 1 -maxdepth 1 -exec stat -c '%f %u %g %s %Y %n' {} +
printf '\0'
find .// -mindepth 1 -maxdepth 1 -type l -exec sh -c '
for link; do printf "%s\0" "$link"; readlink "$link"; printf "\0"; done' sh {} +
:"#;
const MAKE_FOLDER: &str = r#"[ -d "$0" ] && exit 0
umask 022; mkdir -p "$0" && chmod "$1" "$0""#;
const MAKE_LINK: &str = r#"if [ -h "$0" ]; then rm -f "$0" || exit
elif [ -e "$0" ]; then echo "$0: File exists" >&2; exit 1; fi
ln -s -- "$1" "$0""#;
/// Makes the draft of a file beside it, with the attributes that it will have, and tells both paths. Through symbolic
/// links, as a shell's `>` would go.
const BEGIN_WRITE: &str = r#"umask 077
target=$(readlink -f "$0") && [ -n "$target" ] || target=$0
if [ -d "$target" ]; then echo "$0: Is a directory" >&2; exit 1; fi
mode=$1 owner=$2 group=$3
if [ -f "$target" ]; then
    found=$(stat -c '%a %u %g' "$target") || exit
    set -- $found
    mode=${mode:-$1} owner=${owner:-$2} group=${group:-$3}
elif [ -e "$target" ]; then echo "$0: Not a regular file" >&2; exit 1; fi
draft=$(mktemp "${target%/*}/.arnia.XXXXXX") || exit
if chown "${owner:-0}:${group:-0}" "$draft" && chmod "${mode:-644}" "$draft"; then
    printf '%s\0%s' "$draft" "$target"
else
    rm -f "$draft"; exit 1
fi"#;
const END_WRITE: &str = r#"{ sync "$0" 2>/dev/null || sync; } && mv -f "$0" "$1""#;
const GIVE_UP_WRITE: &str = r#"rm -f "$0""#;

/// The files of a guest, by the agent behind a Unix socket. Cheap; holds no connection.
#[derive(Clone, Debug)]
pub struct QgaFiles {
    socket: PathBuf,
}

impl QgaFiles {
    /// By the agent whose serial port leads to `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> QgaFiles {
        QgaFiles { socket: socket.into() }
    }

    fn connect(&self) -> Result<Qga<UnixStream>, Error> {
        Qga::connect(&self.socket)
    }

    /// Runs a script about `path`; returns what it wrote.
    fn script(&self, script: &str, path: &str, arguments: &[&str]) -> Result<Vec<u8>, Error> {
        check(path)?;
        // Its messages are looked at, so they must not be in the guest's language.
        let words = [&["LC_ALL=C", "sh", "-c", script, path], arguments].concat();
        let finished = self.connect()?.run("env", &words, b"", SCRIPT_LIMIT)?;
        match finished.exit {
            Exit::Status(0) => Ok(finished.stdout),
            exit => Err(failure(path, exit, &String::from_utf8_lossy(&finished.stderr))),
        }
    }

    fn open(&self, path: &str, mode: &str) -> Result<i64, Error> {
        let answer = self.connect()?.ask("guest-file-open", json!({"path": path, "mode": mode}))?;
        answer.as_i64().ok_or_else(|| nonsense("guest-file-open"))
    }

    fn close(&self, handle: i64) -> Result<(), Error> {
        self.connect()?.ask("guest-file-close", json!({"handle": handle})).map(drop)
    }

    fn read_all(&self, handle: i64, to: &mut dyn Write) -> Result<(), Error> {
        loop {
            let arguments = json!({"handle": handle, "count": CHUNK_LEN});
            let line = self.connect()?.exchange("guest-file-read", arguments, Limits::PIECE)?;
            let read: FileRead<'_> = answer::parse("guest-file-read", &line)?;
            let bytes = read.bytes()?;
            if bytes.len() > CHUNK_LEN {
                return Err(nonsense("guest-file-read"));
            }
            to.write_all(&bytes).map_err(|error| Error::io("cannot write what the guest sent", error))?;
            if bytes.is_empty() || read.eof {
                return Ok(());
            }
        }
    }

    fn write_all(&self, handle: i64, from: &mut dyn Read) -> Result<(), Error> {
        let mut bytes = vec![0; CHUNK_LEN];
        loop {
            let count = fill(from, &mut bytes)?;
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                let arguments = json!({"handle": handle, "buf-b64": BASE64_STANDARD.encode(rest)});
                let line = self.connect()?.exchange("guest-file-write", arguments, Limits::PIECE)?;
                rest = match answer::parse::<FileWritten>("guest-file-write", &line)?.count {
                    taken if taken > 0 && taken <= rest.len() => &rest[taken..],
                    _ => return Err(nonsense("guest-file-write")),
                };
            }
            if count < bytes.len() {
                return self.connect()?.ask("guest-file-flush", json!({"handle": handle})).map(drop);
            }
        }
    }
}

impl GuestFiles for QgaFiles {
    fn read_file(&self, path: &str, to: &mut dyn Write) -> Result<Attributes, Error> {
        // The agent would wait in `open` for the other end of a pipe, and answer nobody meanwhile.
        let attributes = self.stat(path, true)?;
        if attributes.kind != FileKind::File {
            return Err(invalid(format!("{path} is no ordinary file")));
        }
        let handle = self.open(path, "r")?;
        let read = self.read_all(handle, to);
        let closed = self.close(handle);
        read.and(closed).map(|()| attributes)
    }

    fn write_file(&self, path: &str, attributes: &FileAttributes, from: &mut dyn Read) -> Result<(), Error> {
        let mode = attributes.mode.map(|mode| format!("{:o}", mode & 0o7777)).unwrap_or_default();
        let owner = attributes.uid.map(|uid| uid.to_string()).unwrap_or_default();
        let group = attributes.gid.map(|gid| gid.to_string()).unwrap_or_default();
        let paths = text(path, self.script(BEGIN_WRITE, path, &[&mode, &owner, &group])?)?;
        let (draft, target) = paths.split_once('\0').ok_or_else(|| nonsense("a file to be written"))?;
        let mut write = || -> Result<(), Error> {
            let handle = self.open(draft, "w")?;
            let written = self.write_all(handle, from);
            let closed = self.close(handle);
            written.and(closed)?;
            self.script(END_WRITE, draft, &[target]).map(drop)
        };
        write().inspect_err(|_| {
            // What went wrong first is what is told.
            let _ = self.script(GIVE_UP_WRITE, draft, &[]);
        })
    }

    fn stat(&self, path: &str, follow: bool) -> Result<Attributes, Error> {
        let output = text(path, self.script(STAT, path, &[if follow { "follow" } else { "" }])?)?;
        let (numbers, target) = output.split_once('\n').ok_or_else(|| nonsense("stat"))?;
        let mut attributes = parse(numbers).ok_or_else(|| nonsense("stat"))?.0;
        if attributes.kind == FileKind::Link {
            attributes.target = Some(target.strip_suffix('\n').unwrap_or(target).to_owned());
        }
        Ok(attributes)
    }

    fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let output = text(path, self.script(LIST, path, &[])?)?;
        entries(&output)
    }

    fn make_folder(&self, path: &str, mode: Option<u32>) -> Result<(), Error> {
        let mode = format!("{:o}", mode.unwrap_or(0o755) & 0o7777);
        self.script(MAKE_FOLDER, path, &[&mode]).map(drop)
    }

    fn make_link(&self, path: &str, target: &str) -> Result<(), Error> {
        if target.is_empty() || target.contains('\0') {
            return Err(invalid("a symbolic link must lead somewhere"));
        }
        self.script(MAKE_LINK, path, &[target]).map(drop)
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Refused(AgentErrorKind::Invalid), text)
}

fn check(path: &str) -> Result<(), Error> {
    match path.starts_with('/') && !path.contains('\0') {
        true => Ok(()),
        false => Err(invalid(format!("{path:?} is no absolute path"))),
    }
}

fn text(path: &str, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|_| invalid(format!("{path} has, or leads to, a name that is no UTF-8")))
}

/// Reads until `bytes` is full or there is no more; returns how many came.
fn fill(from: &mut dyn Read, bytes: &mut [u8]) -> Result<usize, Error> {
    let mut count = 0;
    while count < bytes.len() {
        match from.read(&mut bytes[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read what is to be sent", error)),
        }
    }
    Ok(count)
}

/// What a script's message says: one of the texts of strerror(3) at the end of a line.
fn failure(path: &str, exit: Exit, said: &str) -> Error {
    let said = said.trim();
    let ends = |text: &str| said.lines().any(|line| line.ends_with(text));
    let kind = match exit {
        // The shell or `env` has not found the program: nothing that is said of the file.
        Exit::Status(126 | 127) => AgentErrorKind::Failed,
        _ if ends("No such file or directory") => AgentErrorKind::NotFound,
        _ if ends("Permission denied")
            || ends("Operation not permitted")
            || ends("Read-only file system") =>
        {
            AgentErrorKind::Permission
        }
        _ if [
            "Not a directory",
            "Is a directory",
            "Not a regular file",
            "File exists",
            "Invalid argument",
        ]
        .into_iter()
        .any(ends) =>
        {
            AgentErrorKind::Invalid
        }
        _ => AgentErrorKind::Failed,
    };
    let first: String = said.lines().next().unwrap_or_default().chars().take(500).collect();
    let text = if first.is_empty() { format!("{path}: the guest's shell ended by {exit:?}") } else { first };
    Error::new(ErrorKind::Refused(kind), text)
}

/// A line of `stat -c '%f %u %g %s %Y'`; returns what is behind it, too.
fn parse(line: &str) -> Option<(Attributes, &str)> {
    let mut parts = line.splitn(6, ' ');
    let mode = u32::from_str_radix(parts.next()?, 16).ok()?;
    let attributes = Attributes {
        kind: match mode & S_IFMT {
            S_IFREG => FileKind::File,
            S_IFDIR => FileKind::Folder,
            S_IFLNK => FileKind::Link,
            _ => FileKind::Other,
        },
        size: 0,
        mode: mode & 0o7777,
        uid: parts.next()?.parse().ok()?,
        gid: parts.next()?.parse().ok()?,
        modified_s: 0,
        target: None,
    };
    let attributes = Attributes {
        size: parts.next()?.parse().ok()?,
        modified_s: parts.next()?.parse().ok()?,
        ..attributes
    };
    Some((attributes, parts.next().unwrap_or_default()))
}

/// What [`LIST`] wrote.
pub(crate) fn entries(output: &str) -> Result<Vec<Entry>, Error> {
    let bad = || nonsense("the list of a folder");
    let (lines, links) = output.split_once('\0').ok_or_else(bad)?;
    let mut all = Listing::default();
    let mut records = lines.split(" .//");
    let mut numbers = records.next().unwrap_or_default();
    for record in records {
        // The name, and the numbers of the next entry in a line of their own.
        let (name, next) = record.rsplit_once('\n').ok_or_else(bad)?;
        let attributes = parse(numbers).ok_or_else(bad)?.0;
        all.add(Entry { name: name.to_owned(), attributes })?;
        numbers = next;
    }
    let mut all = all.entries();
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut links = links.split('\0');
    while let (Some(name), Some(target)) = (links.next(), links.next()) {
        let name = name.strip_prefix(".//").ok_or_else(bad)?;
        // One that was made since is passed over.
        if let Ok(at) = all.binary_search_by(|entry| entry.name.as_str().cmp(name)) {
            let target = target.strip_suffix('\n').unwrap_or(target);
            files::check_target(target)?;
            all[at].attributes.target = Some(target.to_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_whatever_names_are_like() {
        let output = "41ed 0 0 4096 10 .//b\n81a4 1 2 3 -5 .//a\n81a4 0 0 9 9 x\na1ff 0 0 4 11 .//l .\n\0.//l .\0to\nb\n\0.//gone\0x\n\0";
        let found = entries(output).unwrap();
        let names: Vec<&str> = found.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a\n81a4 0 0 9 9 x", "b", "l ."]);
        assert_eq!((found[0].attributes.mode, found[0].attributes.modified_s), (0o644, -5));
        assert_eq!(found[1].attributes.kind, FileKind::Folder);
        assert_eq!(found[2].attributes.target.as_deref(), Some("to\nb"));
        assert_eq!(entries("\0").unwrap(), []);
        for bad in [
            "",
            "41ed 0 0 4096 10 .//a/b\n\0",
            "41ed 0 0 4096 10 .//..\n\0",
            "x .//a\n\0",
            "41ed 0 0 1 1 .//a",
        ] {
            assert!(entries(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn messages_of_the_guests_programs_have_a_kind() {
        let kind = |status, said: &str| failure("/x", Exit::Status(status), said).kind();
        let refused = ErrorKind::Refused;
        assert_eq!(
            kind(1, "stat: cannot statx '/x': No such file or directory\n"),
            refused(AgentErrorKind::NotFound)
        );
        assert_eq!(kind(2, "sh: 1: cd: can't cd to /x\n"), refused(AgentErrorKind::Failed));
        assert_eq!(kind(127, "env: 'sh': No such file or directory"), refused(AgentErrorKind::Failed));
        assert_eq!(kind(1, "mktemp: failed: Read-only file system"), refused(AgentErrorKind::Permission));
        assert_eq!(kind(1, "/x: Is a directory"), refused(AgentErrorKind::Invalid));
    }
}
