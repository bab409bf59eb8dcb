//! Listing folders.

use super::{Handle, Session, whole};
use crate::PAYLOAD_MAX;
use crate::fuse::{Answer, Dirent, Fields};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

/// How many bytes of a folder are read from the kernel at a time.
const LISTING: usize = 16 << 10;

impl Session {
    pub(super) fn opendir(&self, node: u64, answer: &mut Answer<'_>) -> Result<()> {
        let fd = self.folder.reopen(self.fd(node)?, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = self.handles().add(Handle::Folder(Arc::new(Mutex::new(fd))))?;
        answer.open_out(handle, 0);
        Ok(())
    }

    pub(super) fn readdir(
        &self,
        node: u64,
        mut body: Fields<'_>,
        answer: &mut Answer<'_>,
        plus: bool,
    ) -> Result<()> {
        let (handle, offset, size) = (whole(body.u64())?, whole(body.u64())?, whole(body.u32())?);
        let size = size.min(PAYLOAD_MAX);
        let folder = self.handles().folder(handle)?;
        let folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
        let device = rustix::fs::fstat(&*folder)?.st_dev;
        rustix::fs::seek(&*folder, SeekFrom::Start(offset)).map_err(|_| Errno::INVAL)?;
        let mut room = [MaybeUninit::uninit(); LISTING];
        let mut listing = RawDir::new(&*folder, &mut room);
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What there is so far is right.
                Err(_) if !answer.is_empty() => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name();
            let is_dots = matches!(name.to_bytes(), b"." | b"..");
            let dirent = Dirent {
                ino: self.folder.ino((device, entry.ino())),
                offset: entry.next_entry_cookie(),
                kind: kind(entry.file_type()),
                name: name.to_bytes(),
            };
            let before = answer.len();
            // First whether it fits: a node that the guest is not told of would never be forgotten.
            if !answer.dirent(&dirent, None, plus, size) {
                break;
            }
            if plus && !is_dots {
                match self.folder.find(&*folder, name) {
                    Ok((fd, stat)) => {
                        let attr = self.folder.attr(&stat);
                        let dirent = Dirent { ino: attr.ino, ..dirent };
                        let known = self.enter(node, name, fd, &stat).ok().map(|node| (node, attr));
                        answer.truncate(before);
                        answer.dirent(&dirent, known, plus, size);
                    }
                    // Hidden, or gone meanwhile.
                    Err(Errno::NOENT) => answer.truncate(before),
                    // Another file system is mounted there: its name is seen, and nothing else.
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    pub(super) fn fsyncdir(&self, mut body: Fields<'_>) -> Result<()> {
        let folder = self.handles().folder(whole(body.u64())?)?;
        let folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::fsync(&*folder)
    }
}

/// `DT_DIR` and so on: a type's bits in a mode, moved down (linux/fs.h).
fn kind(file_type: FileType) -> u32 {
    match file_type {
        FileType::Unknown => 0,
        other => other.as_raw_mode() >> 12,
    }
}
