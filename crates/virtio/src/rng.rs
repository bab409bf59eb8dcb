//! The entropy source (virtio 1.2, §5.4): the guest gives buffers, the host's random numbers fill them.

use crate::device::{Activation, DeviceSaved, VirtioDevice};
use crate::queue::{Chain, Queue};
use crate::worker::{Progress, Wait, Work, serve};
use ::device::state::RestoreError;
use rustix::rand::{GetRandomFlags, getrandom};
use std::any::Any;

const QUEUE_SIZE: u16 = 64;
/// What one request gets at most, in bytes. The device may return less than the buffer holds (§5.4.6).
const REQUEST_MAX: u32 = 4096;

/// An entropy source.
#[derive(Default)]
pub struct Rng;

impl Rng {
    /// Creates an entropy source.
    pub fn new() -> Rng {
        Rng
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        match activation.take_queue(0) {
            Some(queue) => {
                let bytes = vec![0; REQUEST_MAX as usize];
                vec![Box::new(RngWork { queue, chain: Chain::new(), bytes })]
            }
            None => Vec::new(),
        }
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        let works = workers.into_iter().filter_map(|work| (work as Box<dyn Any>).downcast::<RngWork>().ok());
        works.map(|work| work.queue).collect()
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Rng
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        match saved {
            DeviceSaved::Rng => Ok(()),
            _ => Err(RestoreError::new("entropy source", "it is the state of another kind of device")),
        }
    }
}

/// The worker of an entropy source.
pub struct RngWork {
    queue: Queue,
    chain: Chain,
    bytes: Vec<u8>,
}

impl Work for RngWork {
    fn work(&mut self) -> Progress {
        let bytes = &mut self.bytes;
        serve(&mut self.queue, &mut self.chain, |chain, ram| {
            let len = chain.writable_len().min(REQUEST_MAX) as usize;
            let len = getrandom(&mut bytes[..len], GetRandomFlags::empty()).unwrap_or(0);
            chain.write_at(ram, 0, &bytes[..len]).map(|_| len as u32)
        })
    }

    fn is_pending(&self) -> bool {
        self.queue.has_available()
    }

    fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    fn wait<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.kick(self.queue.kick());
    }
}

#[cfg(test)]
mod tests;
