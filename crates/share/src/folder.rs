//! A folder of the host that cannot be left.
//!
//! All that is done begins at an open folder and goes one name down, by `openat2` with `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_XDEV`: what a link says is for the guest to follow, within what it sees, and
//! other file systems that are mounted in the folder (`/proc` among them) are out of reach. What is found is kept as a
//! descriptor without rights (`O_PATH`), which is opened for reading or writing by its name in `/proc/self/fd`.

use crate::fuse::{Attr, NAME_MAX};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The owner that a guest is shown for what belongs to somebody else than the server's user.
const NOBODY: u32 = 65534;

/// File systems that are no files of anybody: kernel interfaces (linux/magic.h). Proc, sysfs, devpts, debugfs, tracefs,
/// security, cgroup, cgroup2, bpf, pstore, efivarfs, binfmt_misc, mqueue, FUSE control.
const KERNEL_INTERFACES: [u64; 14] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x27_e0eb,
    0x6367_7270,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x4249_4e4d,
    0x1980_0202,
    0x6573_5543,
];

/// Who owns, in the guest, what the server's user owns on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// What a folder is.
#[derive(Clone, Debug)]
pub struct FolderConfig {
    /// Where it is.
    pub path: PathBuf,
    /// Whether nothing in it may be changed.
    pub read_only: bool,
    /// Who owns it in the guest.
    pub owner: Owner,
    /// Folders that a guest never sees, whatever they are called within.
    pub hidden: Vec<PathBuf>,
}

/// Why a folder cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be opened, or is no folder.
    #[error("the folder {0:?} cannot be opened")]
    Open(PathBuf, #[source] std::io::Error),
    /// It is `/proc` or the like.
    #[error("the folder {0:?} holds no files, but the kernel's own settings")]
    Kernel(PathBuf),
    /// It is in a folder of the daemon's.
    #[error("the folder {0:?} belongs to this program")]
    Hidden(PathBuf),
    /// `/proc` is missing.
    #[error("/proc/self/fd cannot be opened")]
    Proc(#[source] std::io::Error),
}

/// A folder of the host, open.
#[derive(Debug)]
pub struct Folder {
    root: OwnedFd,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    read_only: bool,
    owner: Owner,
    /// The server's user and group.
    host: Owner,
    hidden: Vec<FileKey>,
    /// The folders that those are in, and those that they are in, up to the host's root.
    above_hidden: Vec<FileKey>,
}

/// What a file is known by on the host: device and inode.
pub(crate) type FileKey = (u64, u64);

pub(crate) fn key(stat: &Stat) -> FileKey {
    (stat.st_dev, stat.st_ino)
}

/// Whether a name is one that a folder can have in it.
pub(crate) fn check_name(name: &CStr) -> Result<()> {
    match name.to_bytes() {
        name if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        b"" | b"." | b".." => Err(Errno::INVAL),
        name if name.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

impl Folder {
    /// Opens a folder. What is to be hidden and is not there needs not be.
    ///
    /// # Errors
    /// When it is no folder of files, or one that is to be hidden.
    pub fn open(config: &FolderConfig) -> std::result::Result<Folder, FolderError> {
        let path_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, path_flags, Mode::empty());
        let failed = |errno: Errno| FolderError::Open(config.path.clone(), errno.into());
        let descriptors =
            open(Path::new("/proc/self/fd")).map_err(|errno| FolderError::Proc(errno.into()))?;
        let root = open(&config.path).map_err(failed)?;
        let magic = rustix::fs::fstatfs(&root).map_err(failed)?.f_type as u64;
        if KERNEL_INTERFACES.contains(&magic) {
            return Err(FolderError::Kernel(config.path.clone()));
        }
        let (mut hidden, mut above_hidden) = (Vec::new(), Vec::new());
        for path in &config.hidden {
            let Ok(folder) = open(path) else { continue };
            let mut line = line_of(&folder).map_err(|errno| FolderError::Open(path.clone(), errno.into()))?;
            above_hidden.extend(line.split_off(1));
            hidden.extend(line);
        }
        if line_of(&root).map_err(failed)?.iter().any(|key| hidden.contains(key)) {
            return Err(FolderError::Hidden(config.path.clone()));
        }
        let host =
            Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let (read_only, owner) = (config.read_only, config.owner);
        Ok(Folder { root, descriptors, read_only, owner, host, hidden, above_hidden })
    }

    /// Whether there is something that a guest never sees.
    pub(crate) fn hides(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// Fails where nothing may be changed.
    pub(crate) fn writable(&self) -> Result<()> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Opens what is called `name` in a folder.
    pub(crate) fn open_at(
        &self,
        folder: impl AsFd,
        name: &CStr,
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd> {
        check_name(name)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Not NO_SYMLINKS with O_PATH: a link that is named last is to be found, not followed, which O_NOFOLLOW says.
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        if !flags.contains(OFlags::PATH) {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let mut attempts = 0;
        loop {
            match rustix::fs::openat2(&folder, name, flags, mode, resolve) {
                // A rename elsewhere made the kernel unsure.
                Err(Errno::AGAIN) if attempts < 100 => attempts += 1,
                // Another file system is mounted there.
                Err(Errno::XDEV) => return Err(Errno::ACCESS),
                result => return result,
            }
        }
    }

    /// Finds what is called `name` in a folder.
    pub(crate) fn find(&self, folder: impl AsFd, name: &CStr) -> Result<(OwnedFd, Stat)> {
        let found = self.open_at(folder, name, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&found)?;
        if self.hidden.contains(&key(&stat)) {
            return Err(Errno::NOENT);
        }
        Ok((found, stat))
    }

    /// Fails where `name` in a folder must not be moved or removed: with `NOENT` where it is one that is hidden, with
    /// `BUSY` where such a one is within it and would come to lie somewhere else.
    pub(crate) fn check_movable(&self, folder: impl AsFd, name: &CStr) -> Result<()> {
        if self.hidden.is_empty() {
            return check_name(name);
        }
        match self.find(folder, name) {
            Err(Errno::NOENT) => Err(Errno::NOENT),
            Ok((_, stat)) if self.above_hidden.contains(&key(&stat)) => Err(Errno::BUSY),
            // What cannot be looked at cannot be removed either, and the kernel says why.
            _ => Ok(()),
        }
    }

    /// Opens what a descriptor without rights stands for.
    pub(crate) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        let name = self.descriptor_name(fd);
        rustix::fs::openat(&self.descriptors, name.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// By this name in [`Folder::descriptors`] a call that takes no descriptor without rights reaches what it stands
    /// for.
    pub(crate) fn descriptor_name(&self, fd: impl AsFd) -> CString {
        CString::new(fd.as_fd().as_raw_fd().to_string()).expect("digits")
    }

    /// `/proc/self/fd`.
    pub(crate) fn descriptors(&self) -> BorrowedFd<'_> {
        self.descriptors.as_fd()
    }

    /// What the guest is told of a file.
    pub(crate) fn attr(&self, stat: &Stat) -> Attr {
        let time = |seconds: i64, nanoseconds: u64| (seconds as u64, nanoseconds as u32);
        let mode = match FileType::from_raw_mode(stat.st_mode) {
            // What it drives is the host's. The guest sees that something is there, of which it can make nothing.
            FileType::BlockDevice | FileType::CharacterDevice => FileType::Socket.as_raw_mode(),
            _ => stat.st_mode & !0o6000,
        };
        Attr {
            ino: self.ino(key(stat)),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            times: [
                time(stat.st_atime, stat.st_atime_nsec),
                time(stat.st_mtime, stat.st_mtime_nsec),
                time(stat.st_ctime, stat.st_ctime_nsec),
            ],
            mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: if stat.st_uid == self.host.uid { self.owner.uid } else { NOBODY },
            gid: if stat.st_gid == self.host.gid { self.owner.gid } else { NOBODY },
            block_size: stat.st_blksize as u32,
        }
    }

    /// The inode number that the guest sees: that of the host, moved apart for each of the host's devices, because all
    /// shares are one device to the guest.
    pub(crate) fn ino(&self, (device, inode): FileKey) -> u64 {
        let mixed = device.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        inode ^ mixed << 48
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A folder, the one that it is in, and so on up to the host's root.
fn line_of(folder: &OwnedFd) -> Result<Vec<FileKey>> {
    /// No path is longer.
    const DEPTH_MAX: usize = 4096;
    let up = |from: BorrowedFd<'_>| {
        rustix::fs::openat(from, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let mut line = vec![key(&rustix::fs::fstat(folder)?)];
    let mut above = up(folder.as_fd())?;
    while line.len() < DEPTH_MAX {
        let next = key(&rustix::fs::fstat(&above)?);
        // The root is its own parent.
        if line.last() == Some(&next) {
            break;
        }
        line.push(next);
        above = up(above.as_fd())?;
    }
    Ok(line)
}
