//! The nodes that a guest knows: where they are, what they are known by on the host, and a descriptor for those that
//! were used of late.
//!
//! A guest keeps nodes as long as its memory lasts, many more than a process may have files open. A node whose
//! descriptor was taken away is opened again by its name in the folder above, and is the same only if the host knows it
//! by the same device and inode.

use crate::folder::{FileKey, Folder, key};
use crate::fuse::{NodeId, ROOT_ID};
use rustix::io::{Errno, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// More folders within each other than any path has.
const DEPTH_MAX: usize = 4096;

/// A node.
#[derive(Debug)]
struct Node {
    /// The folder that it is in, and its name there.
    parent: u64,
    name: CString,
    key: FileKey,
    /// How many times the guest was told of it and has not forgotten.
    lookups: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    fd: Arc<OwnedFd>,
    /// When it was used last; `None` for one that cannot be opened again, because it has no name any more.
    used: Option<u64>,
}

/// All nodes of a session.
#[derive(Debug)]
pub(super) struct Nodes {
    share: u32,
    root: Arc<OwnedFd>,
    all: HashMap<u64, Node>,
    by_key: HashMap<FileKey, u64>,
    /// Nodes with descriptors, by when they were used last.
    used: BTreeMap<u64, u64>,
    clock: u64,
    /// Descriptors that are open, those of nodes without a name among them.
    open: usize,
    /// The next number. Where it begins nobody knows.
    next: u64,
    nodes_max: usize,
    open_max: usize,
}

impl Nodes {
    pub(super) fn new(share: u32, root: OwnedFd, first: u64, nodes_max: usize, open_max: usize) -> Nodes {
        Nodes {
            share,
            root: Arc::new(root),
            all: HashMap::new(),
            by_key: HashMap::new(),
            used: BTreeMap::new(),
            clock: 0,
            open: 0,
            next: first,
            nodes_max,
            open_max,
        }
    }

    /// How many the guest knows.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many of them have a descriptor.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The number of a node by its ID.
    pub(super) fn number(&self, raw: u64) -> Result<u64> {
        let id = NodeId::from_raw(raw);
        if id.share == self.share { Ok(id.number) } else { Err(Errno::STALE) }
    }

    /// Takes note that the guest is told of what `parent` has under `name`, and returns its ID.
    pub(super) fn enter(&mut self, parent: u64, name: &CStr, key: FileKey, fd: OwnedFd) -> Result<u64> {
        let number = match self.by_key.get(&key) {
            Some(number) => {
                let number = *number;
                let node = self.all.get_mut(&number).expect("a node for each key");
                node.lookups = node.lookups.saturating_add(1);
                // It may have been moved on the host, or have several names: this one is good now.
                (node.parent, node.name) = (parent, name.to_owned());
                if node.open.is_none() {
                    self.keep(number, Arc::new(fd));
                }
                number
            }
            None => {
                if self.all.len() >= self.nodes_max {
                    return Err(Errno::NFILE);
                }
                let number = self.free_number();
                let node = Node { parent, name: name.to_owned(), key, lookups: 1, open: None };
                self.all.insert(number, node);
                self.by_key.insert(key, number);
                self.keep(number, Arc::new(fd));
                number
            }
        };
        Ok(NodeId { share: self.share, number }.raw())
    }

    fn free_number(&mut self) -> u64 {
        loop {
            self.next = (self.next + 1) & NodeId::NUMBER_MAX;
            if self.next > ROOT_ID && !self.all.contains_key(&self.next) {
                return self.next;
            }
        }
    }

    /// The descriptor of a node.
    pub(super) fn fd(&mut self, folder: &Folder, number: u64) -> Result<Arc<OwnedFd>> {
        // From the node up to one that is open, and down again.
        let mut way = Vec::new();
        let mut at = number;
        let mut fd = loop {
            if let Some(fd) = self.open_fd(at)? {
                break fd;
            }
            way.push(at);
            at = self.all[&at].parent;
            if way.len() > DEPTH_MAX {
                return Err(Errno::STALE);
            }
        };
        for number in way.into_iter().rev() {
            let node = self.all.get(&number).ok_or(Errno::STALE)?;
            let (found, stat) = folder.find(&fd, &node.name).map_err(|_| Errno::STALE)?;
            if key(&stat) != node.key {
                return Err(Errno::STALE);
            }
            fd = Arc::new(found);
            self.keep(number, fd.clone());
        }
        Ok(fd)
    }

    fn open_fd(&mut self, number: u64) -> Result<Option<Arc<OwnedFd>>> {
        if number == ROOT_ID {
            return Ok(Some(self.root.clone()));
        }
        let node = self.all.get_mut(&number).ok_or(Errno::STALE)?;
        let Some(open) = &mut node.open else { return Ok(None) };
        if let Some(used) = &mut open.used {
            self.clock += 1;
            self.used.remove(used);
            *used = self.clock;
            self.used.insert(self.clock, number);
        }
        Ok(Some(open.fd.clone()))
    }

    fn keep(&mut self, number: u64, fd: Arc<OwnedFd>) {
        while self.open >= self.open_max {
            let Some((_, oldest)) = self.used.pop_first() else { break };
            if let Some(node) = self.all.get_mut(&oldest) {
                node.open = None;
            }
            self.open -= 1;
        }
        self.clock += 1;
        if let Some(node) = self.all.get_mut(&number) {
            node.open = Some(Open { fd, used: Some(self.clock) });
            self.used.insert(self.clock, number);
            self.open += 1;
        }
    }

    /// What is called `name` there is about to have no name any more: if the guest knows it, it stays open. Some may stay
    /// open so; beyond, a guest that still uses such a node hears that it is stale.
    pub(super) fn hold(&mut self, key: FileKey, fd: OwnedFd) {
        let Some(number) = self.by_key.get(&key).copied() else { return };
        if self.open - self.used.len() >= self.open_max / 2 {
            return;
        }
        if self.all[&number].open.is_none() {
            self.keep(number, Arc::new(fd));
        }
        if let Some(open) = self.all.get_mut(&number).and_then(|node| node.open.as_mut())
            && let Some(used) = open.used.take()
        {
            self.used.remove(&used);
        }
    }

    /// Takes note that a file that the guest may know has another name now.
    pub(super) fn moved(&mut self, key: FileKey, parent: u64, name: &CStr) {
        if let Some(node) = self.by_key.get(&key).and_then(|number| self.all.get_mut(number)) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// The guest forgets `lookups` of the times that it was told of a node.
    pub(super) fn forget(&mut self, raw: u64, lookups: u64) {
        let Ok(number) = self.number(raw) else { return };
        let Some(node) = self.all.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return;
        }
        let node = self.all.remove(&number).expect("just seen");
        self.by_key.remove(&node.key);
        if let Some(open) = node.open {
            self.open -= 1;
            open.used.map(|used| self.used.remove(&used));
        }
    }

    /// The folder itself.
    pub(super) fn root(&self) -> impl AsFd + use<> {
        self.root.clone()
    }
}
