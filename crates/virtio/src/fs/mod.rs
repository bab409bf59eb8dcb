//! The file system device (virtio 1.2, §5.11): folders of the host, shown to the guest under one tag.
//!
//! There is one such device, whatever is shared: its root has the shares in it, which come and go while the guest runs.
//!
//! ```text
//!  guest: mount -t virtiofs arnia /mnt        FsWork                    file servers, one for each share
//!  ── queue ──> chain ──> header: which share? ── 0 ──> root: answered here
//!                                              └─ n ──> share::Link ── socket ──> …
//!  <── used ring ── by the number in the answer ──────────────────── answers ──┘
//! ```
//!
//! The device has no file of the host open and knows nothing of files: a node's ID says which share it belongs to
//! ([`share::fuse::NodeId`]), and the message goes there as a whole. In the place of the request's number it carries the
//! device's own, by which the answer is found again.
//!
//! Nothing of all this is saved. A guest that goes on from a snapshot finds its nodes stale, and the share itself, whose ID
//! does not change, in its place.

mod root;
pub mod spec;
mod work;

pub use root::LISTING;
pub use work::FsWork;

use crate::device::{Activation, DeviceSaved, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use crate::{Error, ErrorKind};
use ::device::state::RestoreError;
use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use share::Link;
use share::fuse::NodeId;
use spec::{CONFIG_LEN, TAG_LEN, queue};
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tag that guests mount.
pub const TAG: &str = "arnia";
/// Shares of one machine.
pub const SHARES_MAX: usize = 32;

const QUEUE_SIZES: [u16; queue::COUNT] = [64, 256];

/// A file system device.
pub struct Fs {
    control: FsControl,
}

/// The host's hand on the shares.
#[derive(Clone)]
pub struct FsControl {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    /// Stands for the sockets of all shares.
    epoll: Arc<OwnedFd>,
}

/// The shares, and what the guest is told of them.
pub(crate) struct Table {
    shares: Vec<Share>,
    /// The same as [`Shared::epoll`].
    epoll: Arc<OwnedFd>,
    listing: Vec<u8>,
    /// Raised when a share is taken away: what it was asked has no answer.
    removals: u64,
}

/// A share.
pub(crate) struct Share {
    id: u32,
    name: String,
    link: Link,
}

/// Saved form of [`Fs`]: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsSaved {}

impl Fs {
    /// Creates a device without shares.
    ///
    /// # Errors
    /// When the host has no descriptors.
    pub fn new() -> Result<Fs, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| {
            Error::new(ErrorKind::HostRefused, "the host gives no epoll descriptor").with_source(e.into())
        })?;
        let epoll = Arc::new(epoll);
        let table = Table { shares: Vec::new(), epoll: epoll.clone(), listing: Vec::new(), removals: 0 };
        Ok(Fs { control: FsControl { shared: Arc::new(Shared { table: Mutex::new(table), epoll }) } })
    }

    /// The host's hand on it.
    pub fn control(&self) -> FsControl {
        self.control.clone()
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Plugs it in, if it is not. Its socket wakes the worker from then on.
    fn plug_in(&mut self, epoll: &OwnedFd) -> bool {
        match self.link.plug_in() {
            Ok(false) => true,
            Ok(true) => self.follow(epoll, false),
            Err(_) => false,
        }
    }

    /// Waits for what its server has to say, or also for it to take more.
    fn follow(&self, epoll: &OwnedFd, also_room: bool) -> bool {
        let Some(socket) = self.link.socket() else { return false };
        let (data, mut flags) = (epoll::EventData::new_u64(self.id.into()), epoll::EventFlags::IN);
        if also_room {
            flags |= epoll::EventFlags::OUT;
        }
        let added = epoll::add(epoll, socket, data, flags);
        added.or_else(|_| epoll::modify(epoll, socket, data, flags)).is_ok()
    }
}

impl Table {
    fn share(&mut self, id: u32) -> Option<&mut Share> {
        self.shares.iter_mut().find(|share| share.id == id)
    }

    /// Begins anew with all servers: they forget what the guest knew.
    fn renew(&mut self) {
        for share in &mut self.shares {
            share.link.unplug();
            // Else when it is used, or by and by.
            share.plug_in(&self.epoll);
        }
    }

    /// Plugs in what is not; whether all are now.
    fn plug_in_all(&mut self) -> bool {
        let mut all = true;
        for share in &mut self.shares {
            all &= share.plug_in(&self.epoll);
        }
        all
    }
}

impl FsControl {
    /// Adds a share, which the guest sees at once. Its ID and its name are not those of another.
    ///
    /// # Errors
    /// A sentence about what cannot be.
    pub fn add(&self, name: &str, id: u32, link: Link) -> Result<(), &'static str> {
        let mut table = self.shared.table();
        if !(1..=NodeId::SHARE_MAX).contains(&id) {
            return Err("its number is out of range");
        }
        if !root::is_name(name) {
            return Err("its name cannot be the name of a folder");
        }
        if table.shares.len() >= SHARES_MAX {
            return Err("the machine has as many shares as it can");
        }
        if table.shares.iter().any(|share| share.id == id || share.name == name) {
            return Err("the machine has a share of this name or number already");
        }
        let mut share = Share { id, name: name.to_owned(), link };
        // At once, because a server ends when nobody comes.
        share.plug_in(&table.epoll);
        table.shares.push(share);
        Ok(())
    }

    /// Takes a share away; whether there was one of this name. The device's workers have to be woken.
    pub fn remove(&self, name: &str) -> bool {
        let mut table = self.shared.table();
        let before = table.shares.len();
        table.shares.retain(|share| share.name != name);
        let removed = table.shares.len() != before;
        table.removals += u64::from(removed);
        removed
    }

    /// What the guest reads in [`LISTING`].
    pub fn set_listing(&self, listing: Vec<u8>) {
        self.shared.table().listing = listing;
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::FILE_SYSTEM
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; CONFIG_LEN];
        bytes[..TAG.len()].copy_from_slice(TAG.as_bytes());
        bytes[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());
        read_structure(&bytes, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        let queues = std::array::from_fn(|index| activation.take_queue(index));
        vec![Box::new(FsWork::new(queues, self.control.shared.clone()))]
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        let works = workers.into_iter().filter_map(|work| (work as Box<dyn Any>).downcast::<FsWork>().ok());
        works.flat_map(|work| work.into_queues()).collect()
    }

    fn reset(&mut self) {
        self.control.shared.table().renew();
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Fs(FsSaved {})
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        match saved {
            DeviceSaved::Fs(FsSaved {}) => {
                self.control.shared.table().renew();
                Ok(())
            }
            _ => Err(RestoreError::new("file system", "it is the state of another kind of device")),
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests;
