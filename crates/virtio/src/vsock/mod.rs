//! The socket device (virtio 1.2, §5.10): streams between programs in the guest and on the host, where
//! they are unix sockets.
//!
//! | who begins | does |
//! |---|---|
//! | guest | connects to port N of CID 2; the device connects to the unix socket `<path>_<N>` |
//! | host | connects to the unix socket `<path>`, writes `CONNECT <port>\n`, reads `OK <host port>\n` |
//!
//! A restored machine has lost its streams: the guest is told so by an event, and its programs see
//! their sockets reset.

mod connection;
mod credit;
mod muxer;
mod packet;
pub mod spec;
mod work;

pub use packet::Header;
pub use work::VsockWork;

use crate::device::{Activation, DeviceSaved, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use crate::{Error, ErrorKind};
use ::device::state::RestoreError;
use muxer::Muxer;
use serde::{Deserialize, Serialize};
use spec::GUEST_CID_MIN;
use std::any::Any;
use std::path::PathBuf;

const QUEUE_SIZE: u16 = 256;

/// How a socket device is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context ID: at least 3, less than 2^32 - 1.
    pub cid: u64,
    /// Where programs on the host connect to the guest, and the stem of the paths where the guest
    /// connects to them.
    pub path: PathBuf,
}

/// A socket device.
pub struct Vsock {
    cid: u64,
    /// Here while at rest; the worker has it while at work.
    muxer: Option<Muxer>,
    reset_due: bool,
}

/// Saved form of [`Vsock`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSaved {
    /// The guest's context ID.
    pub cid: u64,
}

impl Vsock {
    /// Creates a socket device and listens at its path.
    ///
    /// # Errors
    /// [`ErrorKind::BadConfig`] for a context ID that cannot be, [`ErrorKind::AddressInUse`],
    /// [`ErrorKind::BadAddress`] or [`ErrorKind::HostRefused`].
    pub fn new(config: VsockConfig) -> Result<Vsock, Error> {
        if !(GUEST_CID_MIN..u32::MAX as u64).contains(&config.cid) {
            let context = format!("{} cannot be a guest's vsock CID: choose one of 3 and more", config.cid);
            return Err(Error::new(ErrorKind::BadConfig, context));
        }
        let muxer = Muxer::new(config.cid, &config.path)?;
        Ok(Vsock { cid: config.cid, muxer: Some(muxer), reset_due: false })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::VSOCK
    }

    fn features(&self) -> u64 {
        spec::feature::STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, 16]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_structure(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        let queues = [0, 1, 2].map(|index| activation.take_queue(index));
        match self.muxer.take() {
            Some(muxer) => {
                let reset_due = self.reset_due;
                vec![Box::new(VsockWork::new(work::Parts { queues, muxer, reset_due }))]
            }
            None => Vec::new(),
        }
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        let mut queues = Vec::new();
        for work in workers {
            if let Ok(work) = (work as Box<dyn Any>).downcast::<VsockWork>() {
                let parts = work.into_parts();
                self.muxer = Some(parts.muxer);
                self.reset_due = parts.reset_due;
                queues.extend(parts.queues.into_iter().flatten());
            }
        }
        queues
    }

    fn reset(&mut self) {
        self.reset_due = false;
        if let Some(muxer) = &mut self.muxer {
            muxer.reset();
        }
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Vsock(VsockSaved { cid: self.cid })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        // The CID may be another now: the guest asks for it anew after the event (§5.10.6.7.1).
        let DeviceSaved::Vsock(_) = saved else {
            return Err(RestoreError::new("socket device", "it is the state of another kind of device"));
        };
        if let Some(muxer) = &mut self.muxer {
            muxer.reset();
        }
        self.reset_due = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
