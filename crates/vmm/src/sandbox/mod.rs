//! What the worker gives up before guest code runs.
//!
//! Everything is open by then, so little is needed: a guest that breaks out of the engine or a device finds
//! a process that has no capabilities and can gain none, sees no files ([`files`]), and can make few system
//! calls ([`syscalls`]).
//!
//! The restrictions belong to the calling thread and all that it starts later. [`enter`] is therefore
//! called before any other thread exists. One list of system calls serves all threads: device workers are
//! started by vCPU threads, when the guest's drivers ask for them, and inherit what those may do.

mod files;
mod rights;
mod syscalls;

use crate::Error;
use std::path::PathBuf;

/// What a machine still needs of the host's files.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files that are removed at the end: sockets. Whatever else lies in their folders can then be removed,
    /// too; Landlock knows no finer right.
    pub removed: Vec<PathBuf>,
    /// Whether names are looked up, by the servers in `/etc/resolv.conf`.
    pub name_servers: bool,
    /// The folder that snapshots are made in. All in it can be read, written and removed.
    pub snapshots: Option<PathBuf>,
    /// Folders of discs that can be put into drives. All in them can be read.
    pub media: Vec<PathBuf>,
    /// The folder that overlays of disks are made in. All in it can be read, written and removed.
    pub disk_folder: Option<PathBuf>,
    /// Whether guest code runs by KVM, which is asked by `ioctl`.
    pub kvm: bool,
}

/// Gives up all rights but those that a machine needs. What the host's kernel does not know is left out
/// and logged.
///
/// # Errors
/// When the host refuses what it knows.
pub fn enter(needs: &Needs) -> Result<(), Error> {
    rights::drop_all()?;
    files::restrict(needs)?;
    syscalls::restrict(needs)
}

#[cfg(test)]
mod tests;
