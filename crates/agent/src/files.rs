//! Files of the guest.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use api::agent::frame::{CHUNK_LEN, FrameKind};
use api::agent::{AgentError, Attributes, Entry, FileKind, Reply};

use crate::failure::{failed, invalid};
use crate::session::Connection;

/// Bytes of names and link targets in one page of a folder's list; with the JSON around them it fits a frame.
const PAGE_BYTES_MAX: usize = 16 * 1024;
/// Entries in one page.
const PAGE_ENTRIES_MAX: usize = 256;
/// Names in a folder that are sorted at once.
const NAMES_MAX: usize = 1_000_000;

/// Attributes of a file to be written.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

fn absolute(path: &str) -> Result<&Path, AgentError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(Path::new(path))
    } else {
        Err(invalid(format!("{path:?} is no absolute path")))
    }
}

pub(crate) fn stat(path: &str, follow: bool) -> Result<Attributes, AgentError> {
    let place = absolute(path)?;
    let metadata = if follow { fs::metadata(place) } else { fs::symlink_metadata(place) };
    Ok(attributes(place, &metadata.map_err(|error| failed(path, &error))?))
}

fn attributes(path: &Path, metadata: &Metadata) -> Attributes {
    let kind = metadata.file_type();
    let target = if kind.is_symlink() { fs::read_link(path).ok() } else { None };
    Attributes {
        kind: match kind {
            kind if kind.is_file() => FileKind::File,
            kind if kind.is_dir() => FileKind::Folder,
            kind if kind.is_symlink() => FileKind::Link,
            _ => FileKind::Other,
        },
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_s: metadata.mtime(),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    }
}

pub(crate) fn list(path: &str, after: Option<&str>) -> Result<Reply, AgentError> {
    let folder = absolute(path)?;
    let listed = fs::read_dir(folder).map_err(|error| failed(path, &error))?;
    let mut names = Vec::new();
    for entry in listed.take(NAMES_MAX) {
        let name = entry.map_err(|error| failed(path, &error))?.file_name();
        if after.is_none_or(|after| name.as_bytes() > after.as_bytes()) {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    let (mut entries, mut bytes, mut taken) = (Vec::new(), 0, 0);
    for name in &names {
        if entries.len() == PAGE_ENTRIES_MAX || bytes > PAGE_BYTES_MAX {
            break;
        }
        taken += 1;
        let place = folder.join(name);
        // It may be gone by now.
        let Ok(metadata) = fs::symlink_metadata(&place) else { continue };
        let attributes = attributes(&place, &metadata);
        bytes += name.len() + attributes.target.as_ref().map_or(0, String::len);
        entries.push(Entry { name: name.to_string_lossy().into_owned(), attributes });
    }
    Ok(Reply::Entries { entries, more: taken < names.len() })
}

pub(crate) fn make_folder(path: &str, mode: Option<u32>) -> Result<(), AgentError> {
    let place = absolute(path)?;
    if place.is_dir() {
        return Ok(());
    }
    let mode = mode.unwrap_or(0o755) & 0o7777;
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(place);
    // Not by the builder: the umask must not change what was asked for.
    made.and_then(|()| fs::set_permissions(place, PermissionsExt::from_mode(mode)))
        .map_err(|error| failed(path, &error))
}

pub(crate) fn make_link(path: &str, target: &str) -> Result<(), AgentError> {
    let place = absolute(path)?;
    if target.is_empty() || target.contains('\0') {
        return Err(invalid("a symbolic link must lead somewhere"));
    }
    let make = || -> io::Result<()> {
        match fs::symlink_metadata(place) {
            Ok(there) if there.file_type().is_symlink() => fs::remove_file(place)?,
            _ => {}
        }
        std::os::unix::fs::symlink(target, place)
    };
    make().map_err(|error| failed(path, &error))
}

/// Answers a request to read a file.
///
/// # Errors
/// If the connection fails. If reading does, the connection is ended so that nobody takes the part for
/// the whole.
pub(crate) fn read(connection: &mut Connection, path: &str) -> io::Result<()> {
    let opened = absolute(path).and_then(|place| {
        // A pipe or a terminal must not hold the agent up.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(place);
        let file = file.map_err(|error| failed(path, &error))?;
        let metadata = file.metadata().map_err(|error| failed(path, &error))?;
        if !metadata.is_file() {
            return Err(invalid(format!("{path} is no ordinary file")));
        }
        Ok((file, attributes(place, &metadata)))
    });
    let (mut file, attributes) = match opened {
        Ok(opened) => opened,
        Err(error) => return connection.reply(Err(error)),
    };
    connection.reply(Ok(Reply::File(attributes)))?;
    let mut bytes = vec![0; CHUNK_LEN];
    loop {
        let count = match file.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        connection.send(FrameKind::Data, &bytes[..count])?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Answers a request to write a file.
///
/// # Errors
/// If the connection fails, or writing does after the host has begun to send: what it sent is not known
/// to end then.
pub(crate) fn write(connection: &mut Connection, path: &str, wanted: Wanted) -> io::Result<()> {
    let mut draft = match Draft::begin(path, wanted) {
        Ok(draft) => draft,
        Err(error) => return connection.reply(Err(error)),
    };
    connection.reply(Ok(Reply::Ready))?;
    loop {
        let frame = connection.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.kind != FrameKind::Data {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a file was interrupted by another frame",
            ));
        }
        if frame.payload.is_empty() {
            return connection.reply(draft.finish().map(|()| Reply::Done));
        }
        if let Err(error) = draft.file.write_all(&frame.payload) {
            connection.reply(Err(failed(path, &error)))?;
            return Err(error);
        }
    }
}

/// A file that has not got its name yet. Dropped, it was never there.
struct Draft {
    file: File,
    draft: PathBuf,
    target: PathBuf,
    named: bool,
}

impl Draft {
    fn begin(path: &str, wanted: Wanted) -> Result<Draft, AgentError> {
        let place = absolute(path)?;
        let error = |error: io::Error| failed(path, &error);
        // Through symbolic links, as a shell's `>` would go.
        let target = fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
        let there = match fs::metadata(&target) {
            Ok(there) if there.is_dir() => return Err(invalid(format!("{path} is a folder"))),
            Ok(there) if !there.is_file() => return Err(invalid(format!("{path} is no ordinary file"))),
            Ok(there) => Some(there),
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => None,
            Err(other) => return Err(error(other)),
        };
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(invalid(format!("{path} is no name for a file")));
        };
        let (file, draft) = create_beside(folder, name).map_err(error)?;
        let draft = Draft { file, draft, target: target.clone(), named: false };
        let there = there.as_ref();
        let mode = wanted.mode.or(there.map(Metadata::mode)).unwrap_or(0o644) & 0o7777;
        let uid = wanted.uid.or(there.map(Metadata::uid));
        let gid = wanted.gid.or(there.map(Metadata::gid));
        // The owner first: changing it takes set-user-ID bits away.
        chown(&draft.draft, uid, gid).map_err(error)?;
        draft.file.set_permissions(PermissionsExt::from_mode(mode)).map_err(error)?;
        Ok(draft)
    }

    fn finish(mut self) -> Result<(), AgentError> {
        let finish = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.draft, &self.target)
        };
        finish().map_err(|error| failed(self.target.display(), &error))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.draft);
        }
    }
}

fn create_beside(folder: &Path, name: &OsStr) -> io::Result<(File, PathBuf)> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut tries = 0;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short, because the name itself may be as long as names can be.
        let stem: String = name.to_string_lossy().chars().take(32).collect();
        let draft = folder.join(format!(".{stem}.arnia-{}-{number}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 100 => tries += 1,
            result => return Ok((result?, draft)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let test = TestRoot::new("files");
        test.write("/a", "old");
        let path = test.0.path("/a");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let text = path.to_str().unwrap();
        let mut draft = Draft::begin(text, Wanted::default()).unwrap();
        draft.file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(draft);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a draft was left");

        let mut draft = Draft::begin(text, Wanted::default()).unwrap();
        draft.file.write_all(b"new").unwrap();
        draft.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(stat(text, false).unwrap().mode, 0o640);
    }

    #[test]
    fn links_are_followed_and_folders_refused() {
        let test = TestRoot::new("links");
        test.write("/real", "x");
        let at = |path: &str| test.0.path(path).to_str().unwrap().to_owned();
        make_link(&at("/link"), "real").unwrap();
        make_link(&at("/link"), "real").unwrap();
        assert_eq!(stat(&at("/link"), false).unwrap().target.as_deref(), Some("real"));
        assert_eq!(stat(&at("/link"), true).unwrap().kind, FileKind::File);
        let wanted = Wanted { mode: Some(0o4755), ..Wanted::default() };
        Draft::begin(&at("/link"), wanted).unwrap().finish().unwrap();
        assert_eq!(stat(&at("/real"), false).unwrap().mode, 0o4755);
        assert_eq!(stat(&at("/link"), false).unwrap().kind, FileKind::Link);
        make_folder(&at("/b/c"), Some(0o700)).unwrap();
        make_folder(&at("/b/c"), None).unwrap();
        assert_eq!(stat(&at("/b/c"), false).unwrap().mode, 0o700);
        for path in [at("/b"), "real".into(), "/dev/null".into(), at("/none/x")] {
            assert!(Draft::begin(&path, Wanted::default()).is_err(), "{path}");
        }
        assert!(make_link(&at("/real"), "x").is_err(), "a file is not replaced by a link");
    }

    #[test]
    fn folders_come_in_pages() {
        let test = TestRoot::new("pages");
        for number in 0..600 {
            test.write(&format!("/many/{number:03}"), "");
        }
        let path = test.0.path("/many");
        let (mut names, mut after) = (Vec::new(), None);
        loop {
            let page = list(path.to_str().unwrap(), after.as_deref()).unwrap();
            let Reply::Entries { entries, more } = page else { panic!("entries") };
            names.extend(entries.into_iter().map(|entry| entry.name));
            after = names.last().cloned();
            if !more {
                break;
            }
        }
        assert_eq!(names, (0..600).map(|number| format!("{number:03}")).collect::<Vec<_>>());
    }
}
