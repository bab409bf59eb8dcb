//! The files and folders that a guest has open.

use crate::fuse::NodeId;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// Something open.
#[derive(Clone, Debug)]
pub(super) enum Handle {
    File(Arc<OwnedFd>),
    /// A folder: one listing at a time, because the descriptor has a position.
    Folder(Arc<Mutex<OwnedFd>>),
}

/// All that is open.
#[derive(Debug)]
pub(super) struct Handles {
    all: HashMap<u64, Handle>,
    next: u64,
    max: usize,
}

impl Handles {
    pub(super) fn new(first: u64, max: usize) -> Handles {
        Handles { all: HashMap::new(), next: first, max }
    }

    /// How many are open.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.all.len() >= self.max
    }

    pub(super) fn add(&mut self, handle: Handle) -> Result<u64> {
        if self.is_full() {
            return Err(Errno::NFILE);
        }
        loop {
            self.next = (self.next + 1) & NodeId::NUMBER_MAX;
            if !self.all.contains_key(&self.next) {
                break;
            }
        }
        self.all.insert(self.next, handle);
        Ok(self.next)
    }

    pub(super) fn file(&self, number: u64) -> Result<Arc<OwnedFd>> {
        match self.all.get(&number) {
            Some(Handle::File(fd)) => Ok(fd.clone()),
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn folder(&self, number: u64) -> Result<Arc<Mutex<OwnedFd>>> {
        match self.all.get(&number) {
            Some(Handle::Folder(fd)) => Ok(fd.clone()),
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.all.remove(&number);
    }
}
