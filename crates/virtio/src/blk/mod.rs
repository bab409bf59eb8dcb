//! The block device (virtio 1.2, §5.2), over a [`disk::Disk`].
//!
//! Each queue has a worker with its own [`disk::IoQueue`]: data moves between disk and guest RAM
//! without passing through here. A request that fails is answered with a status; only a chain with no
//! room for a status breaks the queue.
//!
//! **Durability.** A driver that negotiates `VIRTIO_BLK_F_FLUSH` has a write-back cache, which it
//! flushes; one that does not gets writes that are durable when they complete (§5.2.6.2). With
//! `VIRTIO_BLK_F_CONFIG_WCE` it chooses itself.

mod request;
pub mod spec;
mod work;

pub use request::{DISCARD_SECTORS_MAX, Request, SEGMENTS_MAX, Segment, ZEROES_SECTORS_MAX, parse};
pub use work::BlkWork;

use crate::device::{Activation, DeviceSaved, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use ::device::state::RestoreError;
use device::limit::Limiter;
use disk::{Disk, Durability, SECTOR_SIZE};
use serde::{Deserialize, Serialize};
use spec::{config, feature};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a block device is made.
#[derive(Clone, Debug)]
pub struct BlkConfig {
    /// What the driver sees as the disk's serial number; the first 20 bytes count.
    pub serial: String,
    /// Number of queues; useful is one per vCPU. Between 1 and 256.
    pub queues: u16,
    /// Descriptors per queue, a power of two between 4 and 1024.
    pub queue_size: u16,
    /// What keeps its rate, if anything does: reads and writes together.
    pub limiter: Arc<Limiter>,
}

impl Default for BlkConfig {
    fn default() -> BlkConfig {
        let limiter = Arc::new(Limiter::new(Default::default()));
        // A mebibyte in pages of 4 KiB, which is what sequential requests have, and its header and status fit into one chain.
        BlkConfig { serial: String::new(), queues: 1, queue_size: 512, limiter }
    }
}

/// A block device.
pub struct Blk {
    disk: Arc<dyn Disk>,
    config: BlkConfig,
    /// The driver's `writeback` byte.
    write_back: Arc<AtomicBool>,
}

/// Saved form of [`Blk`]. The disk itself is saved by whoever owns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkSaved {
    /// Size of the disk in bytes: the driver knows it, so it must be the same on restore.
    pub size: u64,
    /// The driver's `writeback` byte.
    pub write_back: bool,
}

/// How writes are to be done, as negotiated.
#[derive(Clone, Debug)]
pub(crate) enum CachePolicy {
    /// As `writeback` says now.
    Chosen(Arc<AtomicBool>),
    Fixed(Durability),
}

impl CachePolicy {
    pub(crate) fn durability(&self) -> Durability {
        match self {
            CachePolicy::Fixed(durability) => *durability,
            CachePolicy::Chosen(write_back) if write_back.load(Ordering::Relaxed) => Durability::AtFlush,
            CachePolicy::Chosen(_) => Durability::AtCompletion,
        }
    }
}

impl Blk {
    /// Creates a block device over `disk`.
    ///
    /// # Panics
    /// When the configuration is outside its limits: the caller checks what users write.
    pub fn new(disk: Arc<dyn Disk>, config: BlkConfig) -> Blk {
        assert!((1..=256).contains(&config.queues), "a number of queues within limits");
        let size = config.queue_size;
        assert!(size.is_power_of_two() && (4..=1024).contains(&size), "a queue size within limits");
        Blk { disk, config, write_back: Arc::new(AtomicBool::new(true)) }
    }

    /// `struct virtio_blk_config` (§5.2.4).
    fn structure(&self) -> [u8; config::LEN] {
        let info = self.disk.info();
        let mut bytes = [0; config::LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(config::CAPACITY, &(info.size / SECTOR_SIZE).to_le_bytes());
        // One descriptor each for header and status. With indirect tables a chain may be longer than
        // the queue, but this device does not need more.
        put(config::SEG_MAX, &(self.config.queue_size as u32 - 2).to_le_bytes());
        put(config::BLK_SIZE, &info.logical_block_size.to_le_bytes());
        let physical = info.physical_block_size / info.logical_block_size;
        put(config::PHYSICAL_BLOCK_EXP, &[physical.max(1).ilog2() as u8]);
        put(config::MIN_IO_SIZE, &(physical.clamp(1, u16::MAX as u32) as u16).to_le_bytes());
        put(config::WRITEBACK, &[self.write_back.load(Ordering::Relaxed) as u8]);
        put(config::NUM_QUEUES, &self.config.queues.to_le_bytes());
        if !info.read_only {
            let alignment = info.discard_granularity.unwrap_or(info.logical_block_size) / 512;
            put(config::MAX_DISCARD_SECTORS, &DISCARD_SECTORS_MAX.to_le_bytes());
            put(config::MAX_DISCARD_SEG, &SEGMENTS_MAX.to_le_bytes());
            put(config::DISCARD_SECTOR_ALIGNMENT, &alignment.max(1).to_le_bytes());
            put(config::MAX_WRITE_ZEROES_SECTORS, &ZEROES_SECTORS_MAX.to_le_bytes());
            put(config::MAX_WRITE_ZEROES_SEG, &SEGMENTS_MAX.to_le_bytes());
            put(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        }
        bytes
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::BLOCK
    }

    fn features(&self) -> u64 {
        let info = self.disk.info();
        let mut features = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::CONFIG_WCE
            | feature::MQ;
        if info.read_only {
            features |= feature::RO;
        } else {
            features |= feature::WRITE_ZEROES;
            if info.discard_granularity.is_some() {
                features |= feature::DISCARD;
            }
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.config.queue_size; self.config.queues as usize]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_structure(&self.structure(), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (true, [value]) = (offset == config::WRITEBACK as u64, data) {
            self.write_back.store(*value != 0, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        let has = |feature| activation.features & feature != 0;
        let policy = match (has(feature::CONFIG_WCE), has(feature::FLUSH)) {
            (true, _) => CachePolicy::Chosen(self.write_back.clone()),
            (false, true) => CachePolicy::Fixed(Durability::AtFlush),
            (false, false) => CachePolicy::Fixed(Durability::AtCompletion),
        };
        let mut id = [0; spec::ID_LEN];
        let serial = self.config.serial.as_bytes();
        let len = serial.len().min(id.len());
        id[..len].copy_from_slice(&serial[..len]);
        let queues = (0..self.config.queues as usize).filter_map(|index| activation.take_queue(index));
        queues
            .map(|queue| -> Box<dyn Work> {
                let limiter = self.config.limiter.clone();
                Box::new(BlkWork::new(queue, &self.disk, policy.clone(), id, limiter))
            })
            .collect()
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        let works = workers.into_iter().filter_map(|work| (work as Box<dyn Any>).downcast::<BlkWork>().ok());
        works.map(|work| work.into_queue()).collect()
    }

    fn reset(&mut self) {
        self.write_back.store(true, Ordering::Relaxed);
    }

    fn save(&self) -> DeviceSaved {
        let write_back = self.write_back.load(Ordering::Relaxed);
        DeviceSaved::Blk(BlkSaved { size: self.disk.info().size, write_back })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        let DeviceSaved::Blk(saved) = saved else {
            return Err(RestoreError::new("block device", "it is the state of another kind of device"));
        };
        let size = self.disk.info().size;
        if saved.size != size {
            let reason = format!("its disk had {} bytes, the present one has {size}", saved.size);
            return Err(RestoreError::new("block device", reason));
        }
        self.write_back.store(saved.write_back, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
