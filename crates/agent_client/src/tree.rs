//! Copying files and folders between host and guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use api::agent::{AgentErrorKind, FileKind};

use crate::error::{Error, ErrorKind};
use crate::files::{FileAttributes, GuestFiles, HeldLists};

/// Folders within folders: more than anybody has, fewer than exhaust the stack.
const DEPTH_MAX: u32 = 256;

/// Told of every piece that was copied: how many bytes since the last time.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Copies a file or folder of the host into the guest. If there is a folder at `to`, the copy goes into it,
/// as `cp -r` has it. Permission bits are kept; the owner is root.
///
/// # Errors
/// At the first file that cannot be copied. What was copied before stays.
pub fn copy_in(agent: &dyn GuestFiles, from: &Path, to: &str, progress: Progress<'_>) -> Result<(), Error> {
    let metadata = fs::metadata(from).map_err(|error| Error::io(from.display().to_string(), error))?;
    let mut target = to.to_owned();
    if to.ends_with('/') || is_folder(agent, to)? {
        let name =
            from.canonicalize().ok().and_then(|from| Some(from.file_name()?.to_string_lossy().into_owned()));
        let name =
            name.ok_or_else(|| Error::new(ErrorKind::Io, format!("{} has no name", from.display())))?;
        target = join(to, &name);
    }
    if metadata.is_dir() {
        folder_in(agent, from, &target, progress, 0)
    } else {
        file_in(agent, from, &target, progress)
    }
}

fn folder_in(
    agent: &dyn GuestFiles,
    from: &Path,
    to: &str,
    progress: Progress<'_>,
    depth: u32,
) -> Result<(), Error> {
    let error = |error| Error::io(from.display().to_string(), error);
    check_depth(depth)?;
    let mode = fs::metadata(from).map_err(error)?.permissions().mode();
    agent.make_folder(to, Some(mode & 0o7777))?;
    let mut entries = fs::read_dir(from).map_err(error)?.collect::<io::Result<Vec<_>>>().map_err(error)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} is no UTF-8 and cannot be sent", path.display()),
            ));
        };
        let target = join(to, name);
        let kind = entry.file_type().map_err(|error| Error::io(path.display().to_string(), error))?;
        if kind.is_symlink() {
            let link = fs::read_link(&path).map_err(|error| Error::io(path.display().to_string(), error))?;
            agent.make_link(&target, &link.to_string_lossy())?;
        } else if kind.is_dir() {
            folder_in(agent, &path, &target, progress, depth + 1)?;
        } else if kind.is_file() {
            file_in(agent, &path, &target, progress)?;
        }
        // Sockets, pipes and devices mean nothing elsewhere.
    }
    Ok(())
}

fn file_in(agent: &dyn GuestFiles, from: &Path, to: &str, progress: Progress<'_>) -> Result<(), Error> {
    let error = |error| Error::io(from.display().to_string(), error);
    let file = File::open(from).map_err(error)?;
    let mode = file.metadata().map_err(error)?.permissions().mode() & 0o7777;
    let attributes = FileAttributes { mode: Some(mode), ..FileAttributes::default() };
    agent.write_file(to, &attributes, &mut Counted { inner: file, progress })
}

/// Copies a file or folder of the guest to the host. If there is a folder at `to`, the copy goes into it.
/// Symbolic links inside a folder are copied as links; nothing is ever written through one.
///
/// # Errors
/// At the first file that cannot be copied. What was copied before stays.
pub fn copy_out(agent: &dyn GuestFiles, from: &str, to: &Path, progress: Progress<'_>) -> Result<(), Error> {
    let attributes = agent.stat(from, true)?;
    let mut target = to.to_owned();
    if to.is_dir() {
        let name = from.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if name.is_empty() || name == ".." || name == "." {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{from} has no name; say which one the copy gets"),
            ));
        }
        target.push(name);
    }
    match attributes.kind {
        FileKind::Folder => {
            folder_out(agent, from, &target, attributes.mode, progress, 0, &mut HeldLists::default())
        }
        // The one that the user named may replace a file; those inside a folder must be new.
        FileKind::File => file_out(agent, from, &target, Some(attributes.mode), progress),
        FileKind::Link | FileKind::Other => Err(Error::new(
            ErrorKind::Refused(AgentErrorKind::Invalid),
            format!("{from} is no file and no folder"),
        )),
    }
}

fn folder_out(
    agent: &dyn GuestFiles,
    from: &str,
    to: &Path,
    mode: u32,
    progress: Progress<'_>,
    depth: u32,
    held: &mut HeldLists,
) -> Result<(), Error> {
    let error = |error| Error::io(to.display().to_string(), error);
    check_depth(depth)?;
    match fs::symlink_metadata(to) {
        Ok(there) if there.is_dir() => {}
        Ok(_) => return Err(error(io::ErrorKind::AlreadyExists.into())),
        Err(_) => fs::create_dir(to).map_err(error)?,
    }
    let entries = agent.list(from)?;
    let len = held.take(&entries)?;
    for entry in entries {
        let (source, target) = (join(from, &entry.name), to.join(&entry.name));
        match entry.attributes.kind {
            FileKind::Folder => {
                folder_out(agent, &source, &target, entry.attributes.mode, progress, depth + 1, held)?
            }
            FileKind::File => file_out(agent, &source, &target, Some(entry.attributes.mode), progress)?,
            FileKind::Link => {
                let link = entry.attributes.target.unwrap_or_default();
                let error = |error| Error::io(target.display().to_string(), error);
                if fs::symlink_metadata(&target).is_ok_and(|there| there.is_symlink()) {
                    fs::remove_file(&target).map_err(error)?;
                }
                symlink(link, &target).map_err(error)?;
            }
            FileKind::Other => {}
        }
    }
    held.give_back(len);
    // Last, because one that may not be written could not have been filled. Never set-ID bits: the guest
    // is not the host's user.
    fs::set_permissions(to, PermissionsExt::from_mode(mode & 0o777)).map_err(error)
}

fn file_out(
    agent: &dyn GuestFiles,
    from: &str,
    to: &Path,
    mode: Option<u32>,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let error = |error| Error::io(to.display().to_string(), error);
    if fs::symlink_metadata(to).is_ok_and(|there| there.is_symlink()) {
        fs::remove_file(to).map_err(error)?;
    }
    let mut options = OpenOptions::new();
    // A link that appears now is not followed either (O_NOFOLLOW, open(2)).
    options.write(true).create(true).truncate(true).custom_flags(0o400_000);
    let file = options.open(to).map_err(error)?;
    agent.read_file(from, &mut Counted { inner: &file, progress })?;
    file.set_permissions(PermissionsExt::from_mode(mode.unwrap_or(0o644) & 0o777)).map_err(error)
}

fn is_folder(agent: &dyn GuestFiles, path: &str) -> Result<bool, Error> {
    match agent.stat(path, true) {
        Ok(attributes) => Ok(attributes.kind == FileKind::Folder),
        Err(error) if error.kind() == ErrorKind::Refused(AgentErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

fn check_depth(depth: u32) -> Result<(), Error> {
    if depth < DEPTH_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("folders lie more than {DEPTH_MAX} deep in each other")))
}

fn join(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

/// Counts what passes.
struct Counted<'a, 'b, T> {
    inner: T,
    progress: &'a mut (dyn FnMut(u64) + 'b),
}

impl<T: Read> Read for Counted<'_, '_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.progress)(count as u64);
        Ok(count)
    }
}

impl<T: Write> Write for Counted<'_, '_, T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        (self.progress)(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
