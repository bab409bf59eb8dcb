//! One guest's use of a folder: requests in, answers out.

mod change;
mod files;
mod find;
mod handles;
mod list;
mod nodes;

use crate::Folder;
use crate::fuse::{Answer, Fields, IN_HEADER_LEN, InHeader, NodeId, opcode};
use handles::{Handle, Handles};
use nodes::Nodes;
use rustix::fs::Stat;
use rustix::io::{Errno, Result};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much a guest may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes that it knows: memory, some 200 bytes each.
    pub nodes: usize,
    /// Descriptors for them.
    pub open_nodes: usize,
    /// Files and folders that it has open.
    pub handles: usize,
}

impl Limits {
    const NODES: usize = 1 << 20;
    const HANDLES: usize = 16 << 10;
    /// Descriptors for other things, and for requests that are being answered.
    const SPARE: usize = 64;

    /// What fits a process that may have so many descriptors.
    pub fn within(descriptors: usize) -> Limits {
        let half = descriptors.saturating_sub(Limits::SPARE) / 2;
        Limits {
            nodes: Limits::NODES,
            open_nodes: half.clamp(8, 64 << 10),
            handles: half.clamp(8, Limits::HANDLES),
        }
    }
}

/// One guest's use of a folder. Any number of threads may answer requests.
#[derive(Debug)]
pub struct Session {
    folder: Arc<Folder>,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

impl Session {
    /// Begins with a guest that knows nothing but the folder itself, as the root of the share of this number.
    ///
    /// # Errors
    /// When the host has no descriptor or no random numbers.
    pub fn new(folder: Arc<Folder>, share: u32, limits: Limits) -> std::io::Result<Session> {
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let (a, b) = random.split_at(8);
        let first =
            |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes")) & NodeId::NUMBER_MAX;
        let root = rustix::io::fcntl_dupfd_cloexec(&*folder, 0)?;
        let nodes = Nodes::new(share, root, first(a), limits.nodes, limits.open_nodes);
        let handles = Handles::new(first(b), limits.handles);
        Ok(Session { folder, nodes: Mutex::new(nodes), handles: Mutex::new(handles) })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor of a node.
    fn fd(&self, node: u64) -> Result<Arc<OwnedFd>> {
        let mut nodes = self.nodes();
        let number = nodes.number(node)?;
        nodes.fd(&self.folder, number)
    }

    /// Answers a request, into a buffer; whether there is an answer.
    pub fn answer(&self, request: &[u8], buffer: &mut Vec<u8>) -> bool {
        let Some(header) = InHeader::parse(request) else { return false };
        let body = Fields(&request[IN_HEADER_LEN..]);
        match header.opcode {
            opcode::FORGET => {
                let _ = self.forget(header.node, body);
                return false;
            }
            opcode::BATCH_FORGET => {
                let _ = self.forget_several(body);
                return false;
            }
            _ => {}
        }
        let mut answer = Answer::new(buffer);
        match self.carry_out(&header, body, &mut answer) {
            Ok(()) => answer.finish(header.unique),
            Err(errno) => answer.fail(header.unique, errno.raw_os_error()),
        }
        true
    }

    fn carry_out(&self, header: &InHeader, body: Fields<'_>, answer: &mut Answer<'_>) -> Result<()> {
        let node = header.node;
        match header.opcode {
            opcode::LOOKUP => self.lookup(node, body, answer),
            opcode::GETATTR => self.getattr(node, body, answer),
            opcode::SETATTR => self.setattr(node, body, answer),
            opcode::READLINK => self.readlink(node, answer),
            opcode::STATFS => self.statfs(node, answer),
            opcode::OPEN => self.open(node, body, answer),
            opcode::CREATE => self.create(node, body, answer),
            opcode::READ => self.read(body, answer),
            opcode::WRITE => self.write(body, answer),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(body),
            opcode::FSYNC => self.fsync(body),
            opcode::FALLOCATE => self.fallocate(body),
            opcode::LSEEK => self.lseek(body, answer),
            opcode::COPY_FILE_RANGE => self.copy_file_range(body, answer),
            opcode::OPENDIR => self.opendir(node, answer),
            opcode::READDIR => self.readdir(node, body, answer, false),
            opcode::READDIRPLUS => self.readdir(node, body, answer, true),
            opcode::FSYNCDIR => self.fsyncdir(body),
            opcode::MKNOD => self.mknod(node, body, answer),
            opcode::MKDIR => self.mkdir(node, body, answer),
            opcode::SYMLINK => self.symlink(node, body, answer),
            opcode::LINK => self.link(node, body, answer),
            opcode::UNLINK => self.unlink(node, body, false),
            opcode::RMDIR => self.unlink(node, body, true),
            opcode::RENAME => self.rename(node, body, false),
            opcode::RENAME2 => self.rename(node, body, true),
            // Flushing at close (what is written is the host's at once), extended attributes, locks among guests: Linux
            // asks once and does without.
            _ => Err(Errno::NOSYS),
        }
    }

    fn forget(&self, node: u64, mut body: Fields<'_>) -> Option<()> {
        let lookups = body.u64()?;
        self.nodes().forget(node, lookups);
        Some(())
    }

    fn forget_several(&self, mut body: Fields<'_>) -> Option<()> {
        let count = body.u32()?;
        body.skip(4)?;
        let mut nodes = self.nodes();
        for _ in 0..count {
            let (node, lookups) = (body.u64()?, body.u64()?);
            nodes.forget(node, lookups);
        }
        Some(())
    }

    /// Tells the guest of what `parent` has under `name`.
    fn enter(&self, parent: u64, name: &CStr, fd: OwnedFd, stat: &Stat) -> Result<u64> {
        let mut nodes = self.nodes();
        let parent = nodes.number(parent)?;
        nodes.enter(parent, name, crate::folder::key(stat), fd)
    }

    /// The answer to what makes or finds a file.
    fn entry(&self, parent: u64, name: &CStr, answer: &mut Answer<'_>) -> Result<()> {
        let folder = self.fd(parent)?;
        let (fd, stat) = self.folder.find(&folder, name)?;
        let node = self.enter(parent, name, fd, &stat)?;
        answer.entry_out(node, &self.folder.attr(&stat), crate::fuse::VALID_SECONDS);
        Ok(())
    }
}

/// A request that ends too early.
fn whole<T>(field: Option<T>) -> Result<T> {
    field.ok_or(Errno::INVAL)
}

#[cfg(test)]
impl Session {
    /// Nodes, descriptors for them, handles.
    pub(crate) fn held(&self) -> (usize, usize, usize) {
        let (nodes, handles) = (self.nodes(), self.handles());
        (nodes.len(), nodes.open(), handles.len())
    }
}
