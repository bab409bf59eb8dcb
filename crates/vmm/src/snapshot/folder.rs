//! The folder that snapshots are made in, and one in the making.

use crate::Error;
use api::worker::snapshot::{MANIFEST_FILE, MEMORY_FILE, STATE_FILE};
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, mkdirat, openat, renameat_with,
};
use rustix::fs::{fsync, unlinkat};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the name of a snapshot in the making begins with. No snapshot's own name begins with a dot.
const PARTIAL_PREFIX: &str = ".partial-";
/// Where is noted that files are as they were when they were checked.
pub(super) const CHECKED_FILE: &str = "checked.json";

/// The name of a disk's file.
pub(super) fn disk_file(index: usize) -> String {
    format!("disk{index}.img")
}

/// All files that a snapshot can have.
fn known_files() -> impl Iterator<Item = String> {
    let fixed = [MANIFEST_FILE, STATE_FILE, MEMORY_FILE, CHECKED_FILE].map(str::to_owned);
    fixed.into_iter().chain((0..crate::spec::PCI_DEVICES_MAX).map(disk_file))
}

/// A folder that snapshots are made in.
#[derive(Debug)]
pub struct Folder {
    fd: File,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder and removes what processes that are gone have left half-made.
    ///
    /// # Errors
    /// When it is no folder or cannot be read.
    pub fn open(path: &Path) -> Result<Folder, Error> {
        let cannot = |e: io::Error| {
            Error::bad_input(format!("the folder for snapshots {path:?} cannot be used"))
                .with_source(e)
                .with_advice("make it, or check --snapshots")
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| cannot(e.into()))?;
        let folder = Folder { fd: File::from(fd), path: path.to_owned() };
        for entry in std::fs::read_dir(path).map_err(cannot)?.flatten() {
            if let Some(name) = entry.file_name().to_str()
                && name.starts_with(PARTIAL_PREFIX)
                && let Ok(Some(dir)) = folder.take_stale(name)
            {
                log::info!("removing the unfinished snapshot {name:?}");
                let _ = folder.remove(name, &dir);
            }
        }
        Ok(folder)
    }

    /// Its path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is anything of this name.
    pub fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Begins a snapshot; `name` is a valid one.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when there is one of this name, [`io::ErrorKind::WouldBlock`] when
    /// another process is making one.
    pub fn begin(&self, name: &str) -> io::Result<Partial> {
        if self.has(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let partial = format!("{PARTIAL_PREFIX}{name}");
        let private = Mode::RWXU;
        match mkdirat(&self.fd, &partial, private) {
            Err(Errno::EXIST) => {
                let Some(dir) = self.take_stale(&partial)? else {
                    return Err(io::ErrorKind::WouldBlock.into());
                };
                self.remove(&partial, &dir)?;
                mkdirat(&self.fd, &partial, private)?;
            }
            result => result?,
        }
        let dir = self.open_dir(&partial)?;
        // Tells others that this is not left over.
        flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        let folder = self.fd.try_clone()?;
        Ok(Partial { folder, dir, partial, name: name.to_owned(), done: false })
    }

    fn open_dir(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.fd, name, flags, Mode::empty())?))
    }

    /// The folder of that name, if nobody is working on it.
    fn take_stale(&self, name: &str) -> io::Result<Option<File>> {
        let dir = self.open_dir(name)?;
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(dir)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn remove(&self, name: &str, dir: &File) -> io::Result<()> {
        remove(&self.fd, name, dir)
    }
}

/// Layers of disks in the folder of a snapshot.
fn layers(dir: &File) -> io::Result<Vec<CString>> {
    let entries = rustix::fs::Dir::read_from(dir)?.collect::<Result<Vec<_>, _>>()?;
    let names = entries.into_iter().map(|entry| entry.file_name().to_owned());
    Ok(names.filter(|name| disk::is_layer(Path::new(OsStr::from_bytes(name.to_bytes())))).collect())
}

/// Removes the folder of a snapshot; what does not belong to one keeps it.
fn remove(folder: &File, name: &str, dir: &File) -> io::Result<()> {
    let known = known_files().filter_map(|name| CString::new(name).ok());
    for file in known.chain(layers(dir)?) {
        match unlinkat(dir, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

/// A snapshot in the making. Dropping it removes it.
#[derive(Debug)]
pub struct Partial {
    folder: File,
    dir: File,
    partial: String,
    name: String,
    done: bool,
}

impl Partial {
    /// The name that it will have.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes a file in it, for this user alone: guest memory holds secrets.
    ///
    /// # Errors
    /// As the host fails.
    pub fn create(&self, file: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.dir, file, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// Gives a file that is there already a name in it, too.
    ///
    /// # Errors
    /// As the host fails: where the folder lies on another file system, for one.
    pub fn link(&self, file: &Path, name: &str) -> io::Result<()> {
        Ok(rustix::fs::linkat(CWD, file, &self.dir, name, AtFlags::empty())?)
    }

    /// Takes a file out of it.
    pub fn unlink(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, AtFlags::empty());
    }

    /// Gives it its name. All its files are synced.
    ///
    /// # Errors
    /// As the host fails; it is removed then.
    pub fn commit(mut self) -> io::Result<()> {
        fsync(&self.dir)?;
        let renamed =
            renameat_with(&self.folder, &self.partial, &self.folder, &self.name, RenameFlags::NOREPLACE);
        match renamed {
            // A file system without that flag. Nobody else makes a snapshot of this name: the folder of the
            // unfinished one is locked.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::renameat(&self.folder, &self.partial, &self.folder, &self.name)?;
            }
            result => result?,
        }
        self.done = true;
        fsync(&self.folder)?;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done
            && let Err(e) = remove(&self.folder, &self.partial, &self.dir)
        {
            log::warn!("the unfinished snapshot {:?} cannot be removed: {e}", self.partial);
        }
    }
}

/// Syncs a file and tells its length.
pub(super) fn sync(file: impl AsFd) -> io::Result<u64> {
    fsync(&file)?;
    Ok(rustix::fs::fstat(&file)?.st_size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("arnia-folder-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        path
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_snapshot_is_whole_or_not_there() {
        let path = folder("whole");
        let folder = Folder::open(&path).unwrap();
        let partial = folder.begin("a").unwrap();
        partial.create(MEMORY_FILE).unwrap().write_all(b"x").unwrap();
        assert!(!folder.has("a"));
        assert_eq!(folder.begin("a").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(partial);
        assert_eq!(names(&path), [""; 0]);
        folder.begin("a").unwrap().commit().unwrap();
        assert_eq!(names(&path), ["a"]);
        assert_eq!(folder.begin("a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn what_the_dead_have_left_is_removed_and_what_the_living_make_is_not() {
        let path = folder("stale");
        for name in [".partial-dead", ".partial-again"] {
            std::fs::create_dir(path.join(name)).unwrap();
            std::fs::write(path.join(name).join(STATE_FILE), "{").unwrap();
            std::fs::write(path.join(name).join("a.qcow2.1.layer"), "").unwrap();
        }
        let other = Folder { fd: File::open(&path).unwrap(), path: path.clone() };
        let alive = other.begin("alive").unwrap();
        drop(other.begin("again").unwrap());
        let folder = Folder::open(&path).unwrap();
        assert_eq!(names(&path), [".partial-alive"]);
        alive.commit().unwrap();
        assert!(folder.has("alive"));
        std::fs::remove_dir_all(&path).unwrap();
    }
}
