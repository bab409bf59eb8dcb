//! Changing what is in a folder: names and attributes.

use super::files::permissions;
use super::{Session, whole};
use crate::folder::{check_name, key};
use crate::fuse::{Answer, Fields, VALID_SECONDS, setattr};
use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::{Errno, Result};
use std::ffi::CStr;

/// utimensat(2): now, and not at all.
const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

/// What a guest may ask of a rename: not to replace, to exchange (linux/fs.h).
const RENAME_KNOWN: u32 = 1 | 2;
const RENAME_EXCHANGE: u32 = 2;

impl Session {
    pub(super) fn setattr(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (valid, _, handle) = (whole(body.u32())?, whole(body.u32())?, whole(body.u64())?);
        let (size, _) = (whole(body.u64())?, whole(body.u64())?);
        let seconds = [whole(body.u64())?, whole(body.u64())?, whole(body.u64())?];
        let nanoseconds = [whole(body.u32())?, whole(body.u32())?, whole(body.u32())?];
        let (mode, _) = (whole(body.u32())?, whole(body.u32())?);
        let (uid, gid) = (whole(body.u32())?, whole(body.u32())?);
        self.folder.writable()?;
        let has = |flag: u32| valid & flag != 0;
        let fd = self.fd(node)?;
        let stat = rustix::fs::fstat(&fd)?;
        let shown = self.folder.attr(&stat);
        // Everything belongs to one user on the host; a guest may only say what is so already.
        if has(setattr::UID) && uid != shown.uid || has(setattr::GID) && gid != shown.gid {
            return Err(Errno::PERM);
        }
        let (descriptors, name) = (self.folder.descriptors(), self.folder.descriptor_name(&fd));
        let kind = FileType::from_raw_mode(stat.st_mode);
        if has(setattr::MODE) {
            match kind {
                FileType::RegularFile | FileType::Directory => {
                    rustix::fs::chmodat(descriptors, name.as_c_str(), permissions(mode), AtFlags::empty())?;
                }
                _ => return Err(Errno::OPNOTSUPP),
            }
        }
        if has(setattr::SIZE) {
            match (has(setattr::FH), kind) {
                (true, _) => rustix::fs::ftruncate(self.handles().file(handle)?, size)?,
                (false, FileType::RegularFile) => {
                    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                    rustix::fs::ftruncate(self.folder.reopen(&fd, flags)?, size)?;
                }
                (false, _) => return Err(Errno::INVAL),
            }
        }
        if has(setattr::ATIME | setattr::MTIME | setattr::ATIME_NOW | setattr::MTIME_NOW) {
            let time = |set: u32, now: u32, index: usize| match (has(now), has(set)) {
                (true, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                (false, true) => Timespec {
                    tv_sec: seconds[index] as i64,
                    tv_nsec: i64::from(nanoseconds[index].min(999_999_999)),
                },
                (false, false) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            };
            let times = Timestamps {
                last_access: time(setattr::ATIME, setattr::ATIME_NOW, 0),
                last_modification: time(setattr::MTIME, setattr::MTIME_NOW, 1),
            };
            rustix::fs::utimensat(descriptors, name.as_c_str(), &times, AtFlags::empty())?;
        }
        answer.attr_out(&self.folder.attr(&rustix::fs::fstat(&fd)?), VALID_SECONDS);
        Ok(())
    }

    pub(super) fn mknod(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let mode = whole(body.u32())?;
        whole(body.skip(12))?;
        let name = self.new_name(&mut body)?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        rustix::fs::mknodat(self.fd(node)?, name, kind, permissions(mode), 0)?;
        self.entry(node, name, answer)
    }

    pub(super) fn mkdir(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let mode = whole(body.u32())?;
        whole(body.skip(4))?;
        let name = self.new_name(&mut body)?;
        rustix::fs::mkdirat(self.fd(node)?, name, permissions(mode))?;
        self.entry(node, name, answer)
    }

    pub(super) fn symlink(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let name = self.new_name(&mut body)?;
        let target = whole(body.text())?;
        rustix::fs::symlinkat(target, self.fd(node)?, name)?;
        self.entry(node, name, answer)
    }

    pub(super) fn link(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let old = whole(body.u64())?;
        let name = self.new_name(&mut body)?;
        let (file, folder) = (self.fd(old)?, self.fd(node)?);
        let of = self.folder.descriptor_name(&file);
        let descriptors = self.folder.descriptors();
        rustix::fs::linkat(descriptors, of.as_c_str(), &folder, name, AtFlags::SYMLINK_FOLLOW)?;
        self.entry(node, name, answer)
    }

    pub(super) fn unlink(&self, node: u64, mut body: Fields<'_>, is_folder: bool) -> Result<()> {
        let name = self.new_name(&mut body)?;
        let folder = self.fd(node)?;
        self.folder.check_movable(&folder, name)?;
        let found = self.folder.find(&folder, name);
        rustix::fs::unlinkat(&folder, name, if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
        if let Ok((fd, stat)) = found {
            self.nodes().hold(key(&stat), fd);
        }
        Ok(())
    }

    pub(super) fn rename(&self, node: u64, mut body: Fields<'_>, has_flags: bool) -> Result<()> {
        let to_node = whole(body.u64())?;
        let flags = if has_flags { whole(body.u32())? } else { 0 };
        if has_flags {
            whole(body.skip(4))?;
        }
        if flags & !RENAME_KNOWN != 0 {
            return Err(Errno::INVAL);
        }
        let (from_name, to_name) = (self.new_name(&mut body)?, self.new_name(&mut body)?);
        let (from, to) = (self.fd(node)?, self.fd(to_node)?);
        let found = self.folder.find(&from, from_name);
        self.folder.check_movable(&from, from_name)?;
        let exchanges = flags & RENAME_EXCHANGE != 0;
        if exchanges {
            // What has the other name is moved as well.
            self.folder.check_movable(&to, to_name)?;
        }
        // What was there loses its name, or gets the other.
        let replaced = self.folder.find(&to, to_name);
        let is_hidden = replaced.as_ref().is_err_and(|errno| *errno == Errno::NOENT);
        let flags_now = RenameFlags::from_bits_retain(flags);
        // A hidden folder is not there for the guest, and must not be replaced either.
        let careful = is_hidden && self.folder.hides() && !exchanges;
        let flags_now = if careful { flags_now | RenameFlags::NOREPLACE } else { flags_now };
        rustix::fs::renameat_with(&from, from_name, &to, to_name, flags_now)?;
        let mut nodes = self.nodes();
        let (from_number, to_number) = (nodes.number(node)?, nodes.number(to_node)?);
        if let Ok((_, stat)) = found {
            nodes.moved(key(&stat), to_number, to_name);
        }
        match replaced {
            Ok((_, stat)) if exchanges => nodes.moved(key(&stat), from_number, from_name),
            Ok((fd, stat)) => nodes.hold(key(&stat), fd),
            Err(_) => {}
        }
        Ok(())
    }

    /// The name of what is to be changed.
    fn new_name<'a>(&self, body: &mut Fields<'a>) -> Result<&'a CStr> {
        self.folder.writable()?;
        let name = whole(body.text())?;
        check_name(name)?;
        Ok(name)
    }
}
