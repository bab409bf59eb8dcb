//! The network card (virtio 1.2, §5.1), plugged into a [`net::Backend`](::net::Backend).
//!
//! One pair of queues and one worker, which owns the backend. Frames for which the guest has no room
//! wait in the backend, which decides what to drop.
//!
//! **Offloads.** What a backend sees are frames as on a wire, none longer than it takes, with all their
//! checksums. What the guest saves, the card does: it completes checksums, cuts long TCP segments, and
//! vouches for what arrives with right checksums, all at the host's speed.

mod offload;
pub mod spec;
mod work;

pub use work::NetWork;

use crate::device::{Activation, DeviceSaved, Interrupt, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use ::device::state::RestoreError;
use ::net::Backend;
use device::limit::Limiter;
use serde::{Deserialize, Serialize};
use spec::{config, feature};
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const QUEUE_SIZE: u16 = 256;
const ETHERNET_HEADER_LEN: usize = 14;

/// A network card.
pub struct Net {
    mac: [u8; 6],
    /// The driver has not been told that this is another address than before.
    mac_is_news: bool,
    mtu: u16,
    /// Here while at rest; the worker has it while at work.
    backend: Option<Box<dyn Backend>>,
    link: Link,
    /// For frames from the guest, and to it.
    limiters: [Arc<Limiter>; 2],
}

/// A network card's cable: pulls it out and plugs it in while the machine runs.
#[derive(Clone)]
pub struct Link {
    shared: Arc<LinkShared>,
}

struct LinkShared {
    up: AtomicBool,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Link {
    fn new() -> Link {
        Link { shared: Arc::new(LinkShared { up: AtomicBool::new(true), interrupt: Mutex::new(None) }) }
    }

    /// Whether the cable is in.
    pub fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// Plugs the cable in or pulls it out. Frames that are sent while it is out are lost.
    pub fn set(&self, up: bool) {
        if self.shared.up.swap(up, Ordering::Relaxed) != up {
            let interrupt = self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(interrupt) = interrupt {
                interrupt.config_changed();
            }
        }
    }

    fn connect(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

/// Saved form of [`Net`]. Frames on their way are lost, as networks may lose them; the backend is saved
/// by whoever owns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSaved {
    /// The card's address.
    pub mac: [u8; 6],
    /// Whether the cable was in.
    pub link_up: bool,
}

impl Net {
    /// Creates a card with address `mac`, plugged into `backend`.
    pub fn new(mac: [u8; 6], backend: Box<dyn Backend>) -> Net {
        let mtu = backend.frame_size_max().saturating_sub(ETHERNET_HEADER_LEN);
        // 68 is the least that the specification allows (§5.1.4.1).
        let mtu = mtu.clamp(68, u16::MAX as usize) as u16;
        let limiters = [(); 2].map(|()| Arc::new(Limiter::new(Default::default())));
        Net { mac, mac_is_news: false, mtu, backend: Some(backend), link: Link::new(), limiters }
    }

    /// What keeps the rate of frames from the guest, and of frames to it.
    pub fn limiters(&self) -> [Arc<Limiter>; 2] {
        self.limiters.clone()
    }

    /// The cable.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// `struct virtio_net_config` (§5.1.4).
    fn structure(&self) -> [u8; config::LEN] {
        let mut bytes = [0; config::LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(config::MAC, &self.mac);
        put(config::STATUS, &(self.link.is_up() as u16 * spec::S_LINK_UP).to_le_bytes());
        put(config::MAX_VIRTQUEUE_PAIRS, &1u16.to_le_bytes());
        put(config::MTU, &self.mtu.to_le_bytes());
        bytes
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::NET
    }

    fn features(&self) -> u64 {
        feature::MAC
            | feature::STATUS
            | feature::MTU
            | feature::MRG_RXBUF
            | feature::CSUM
            | feature::GUEST_CSUM
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_ECN
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_structure(&self.structure(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        self.link.connect(Some(activation.interrupt.clone()));
        if std::mem::take(&mut self.mac_is_news) {
            activation.interrupt.config_changed();
        }
        let has = |wanted| activation.features & wanted != 0;
        let agreed = work::Agreed {
            merge: has(feature::MRG_RXBUF),
            checksum: has(feature::CSUM),
            cut: has(feature::HOST_TSO4 | feature::HOST_TSO6),
            vouch: has(feature::GUEST_CSUM),
        };
        let (receive, transmit) = (activation.take_queue(0), activation.take_queue(1));
        match self.backend.take() {
            Some(backend) => {
                let (link, limiters) = (self.link.clone(), self.limiters.clone());
                vec![Box::new(NetWork::new(receive, transmit, backend, agreed, link, limiters))]
            }
            None => Vec::new(),
        }
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        self.link.connect(None);
        let mut queues = Vec::new();
        for work in workers {
            if let Ok(work) = (work as Box<dyn Any>).downcast::<NetWork>() {
                let (receive, transmit, backend) = work.into_parts();
                self.backend = Some(backend);
                queues.extend([receive, transmit].into_iter().flatten());
            }
        }
        queues
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Net(NetSaved { mac: self.mac, link_up: self.link.is_up() })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        let DeviceSaved::Net(saved) = saved else {
            return Err(RestoreError::new("network card", "it is the state of another kind of device"));
        };
        // The address is the one that this card was made with: a copy of a machine may have another. Its driver
        // is told that something has changed; Linux does not look at the address then, so that the agent in
        // the guest is told, too.
        self.mac_is_news = saved.mac != self.mac;
        self.link.shared.up.store(saved.link_up, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
