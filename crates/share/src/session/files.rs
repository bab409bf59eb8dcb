//! Reading and writing files.

use super::{Handle, Session, whole};
use crate::PAYLOAD_MAX;
use crate::fuse::{Answer, FSYNC_FDATASYNC, Fields, VALID_SECONDS};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, Result};
use std::sync::Arc;

/// What the kernel copies for one request: more would keep others waiting.
const COPY_MAX: u64 = 16 << 20;
/// `lseek` for data and holes (unistd.h).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Session {
    /// How a file is opened for a guest that gives these flags of open(2).
    fn open_flags(&self, flags: u32) -> Result<OFlags> {
        let wanted = OFlags::from_bits_retain(flags);
        let access = wanted & OFlags::RWMODE;
        if access != OFlags::RDONLY || wanted.contains(OFlags::TRUNC) {
            self.folder.writable()?;
        }
        // All else is the guest's own affair. Not to wait, should the file be something else by now.
        let kept = wanted & (OFlags::RWMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC);
        Ok(kept | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    pub(super) fn open(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let flags = self.open_flags(whole(body.u32())?)?;
        let fd = self.fd(node)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            // Pipes and sockets of the host lead out of the folder. In the guest they are its kernel's own.
            _ => return Err(Errno::ACCESS),
        }
        let file = self.folder.reopen(&fd, flags)?;
        let handle = self.handles().add(Handle::File(Arc::new(file)))?;
        answer.open_out(handle, 0);
        Ok(())
    }

    pub(super) fn create(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (flags, mode) = (whole(body.u32())?, whole(body.u32())?);
        whole(body.skip(8))?;
        let name = whole(body.text())?;
        self.folder.writable()?;
        let exclusive = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let flags = self.open_flags(flags)? | OFlags::CREATE | exclusive;
        if self.handles().is_full() {
            return Err(Errno::NFILE);
        }
        let folder = self.fd(node)?;
        let file = self.folder.open_at(&folder, name, flags, permissions(mode))?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::ACCESS);
        }
        let fd = self.folder.reopen(&file, OFlags::PATH)?;
        let entry = self.enter(node, name, fd, &stat)?;
        let handle = match self.handles().add(Handle::File(Arc::new(file))) {
            Ok(handle) => handle,
            Err(error) => {
                // The guest is told of nothing.
                self.nodes().forget(entry, 1);
                return Err(error);
            }
        };
        answer.entry_out(entry, &self.folder.attr(&stat), VALID_SECONDS).open_out(handle, 0);
        Ok(())
    }

    pub(super) fn read(&self, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (handle, offset, size) = (whole(body.u64())?, whole(body.u64())?, whole(body.u32())?);
        let file = self.handles().file(handle)?;
        let size = size.min(PAYLOAD_MAX) as usize;
        answer.fill(size, |room| {
            let mut done = 0;
            while done < room.len() {
                match rustix::io::pread(&file, &mut room[done..], offset.wrapping_add(done as u64)) {
                    Ok(0) => break,
                    Ok(len) => done += len,
                    Err(Errno::INTR) => {}
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(done)
        })
    }

    pub(super) fn write(&self, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (handle, offset, size) = (whole(body.u64())?, whole(body.u64())?, whole(body.u32())?);
        whole(body.skip(20))?;
        let data = whole(body.0.get(..size as usize))?;
        self.folder.writable()?;
        let file = self.handles().file(handle)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&file, &data[done..], offset.wrapping_add(done as u64)) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        answer.u32(done as u32).u32(0);
        Ok(())
    }

    pub(super) fn release(&self, mut body: Fields<'_>) -> Result<()> {
        let handle = whole(body.u64())?;
        self.handles().remove(handle);
        Ok(())
    }

    pub(super) fn fsync(&self, mut body: Fields<'_>) -> Result<()> {
        let (handle, flags) = (whole(body.u64())?, whole(body.u32())?);
        let file = self.handles().file(handle)?;
        if flags & FSYNC_FDATASYNC != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(super) fn fallocate(&self, mut body: Fields<'_>) -> Result<()> {
        let (handle, offset, len) = (whole(body.u64())?, whole(body.u64())?, whole(body.u64())?);
        let flags = FallocateFlags::from_bits_retain(whole(body.u32())?);
        self.folder.writable()?;
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(flags) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(self.handles().file(handle)?, flags, offset, len)
    }

    pub(super) fn lseek(&self, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (handle, offset, whence) = (whole(body.u64())?, whole(body.u64())?, whole(body.u32())?);
        let from = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        answer.u64(rustix::fs::seek(self.handles().file(handle)?, from)?);
        Ok(())
    }

    pub(super) fn copy_file_range(&self, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (from, mut from_at, _) = (whole(body.u64())?, whole(body.u64())?, whole(body.u64())?);
        let (to, mut to_at, len) = (whole(body.u64())?, whole(body.u64())?, whole(body.u64())?);
        self.folder.writable()?;
        let (from, to) = {
            let handles = self.handles();
            (handles.file(from)?, handles.file(to)?)
        };
        let len = len.min(COPY_MAX) as usize;
        let copied = rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len)?;
        answer.u32(copied as u32).u32(0);
        Ok(())
    }
}

/// The permissions that a guest may give: none that make a program run as its owner, who is somebody on the host.
pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o1777)
}
