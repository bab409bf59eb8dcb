//! Looking at files: names, attributes, links.

use super::{Session, whole};
use crate::fuse::{Answer, Fields, GETATTR_FH, PATH_MAX, VALID_SECONDS};
use rustix::io::{Errno, Result};

impl Session {
    pub(super) fn lookup(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let name = whole(body.text())?;
        if name.to_bytes() == b"." {
            // The folder itself: how a machine asks for a share by its name.
            let nodes = self.nodes();
            if nodes.number(node)? != crate::fuse::ROOT_ID {
                return Err(Errno::INVAL);
            }
            let stat = rustix::fs::fstat(nodes.root())?;
            // Asked anew each time: in a copy of the machine the name may stand for another share the next moment.
            answer.entry_out(node, &self.folder.attr(&stat), 0);
            return Ok(());
        }
        self.entry(node, name, answer)
    }

    pub(super) fn getattr(&self, node: u64, mut body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let (flags, _, handle) = (whole(body.u32())?, whole(body.u32())?, whole(body.u64())?);
        // A file that is open may have no name any more.
        let open = (flags & GETATTR_FH != 0).then(|| self.handles().file(handle).ok()).flatten();
        let fd = match open {
            Some(fd) => fd,
            None => self.fd(node)?,
        };
        answer.attr_out(&self.folder.attr(&rustix::fs::fstat(&fd)?), VALID_SECONDS);
        Ok(())
    }

    pub(super) fn readlink(&self, node: u64, answer: &mut Answer<'_>) -> Result<()> {
        let fd = self.fd(node)?;
        answer.fill(PATH_MAX, |room| rustix::fs::readlinkat_raw(&fd, c"", room))
    }

    pub(super) fn statfs(&self, node: u64, answer: &mut Answer<'_>) -> Result<()> {
        let stat = rustix::fs::fstatvfs(self.fd(node)?)?;
        // struct fuse_kstatfs.
        answer.u64(stat.f_blocks).u64(stat.f_bfree).u64(stat.f_bavail).u64(stat.f_files).u64(stat.f_ffree);
        let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        answer.u32(short(stat.f_bsize)).u32(short(stat.f_namemax)).u32(short(stat.f_frsize)).zeroes(28);
        Ok(())
    }
}
