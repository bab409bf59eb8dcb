//! The memory balloon (virtio 1.2, §5.5): takes memory from the guest and gives it back to the host, tells the
//! host of the guest's memory, and hears of pages that the guest has free.
//!
//! The host sets a target; the guest's driver follows it in its own time, and takes memory back when it would
//! otherwise run out (`DEFLATE_ON_OOM`). Free pages are reported without being asked for and go back to the host
//! at once, so a guest that has freed memory costs no more than one that never used it.
//!
//! A page that is given away reads as zero afterwards, or as whatever lay behind it (in a machine that goes on
//! from a snapshot); the guest must not rely on it, and Linux does not (§5.5.6.6, no `PAGE_POISON`).

pub mod spec;
mod work;

pub use work::BalloonWork;

use crate::device::{Activation, DeviceSaved, Interrupt, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use ::device::state::RestoreError;
use serde::{Deserialize, Serialize};
use spec::{PAGE, config, feature};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const QUEUE_SIZE: u16 = 128;

/// A balloon.
pub struct Balloon {
    control: BalloonControl,
}

/// The host's hand on a balloon.
#[derive(Clone, Default)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Pages that the guest is to give away, and that it says it has given.
    target: AtomicU32,
    actual: AtomicU32,
    /// Bytes that went back to the host because the guest reported them free.
    reported: AtomicU64,
    stats: Mutex<BTreeMap<&'static str, u64>>,
    /// Whether the guest is to be asked for its figures.
    wants_stats: AtomicBool,
    /// Whether a driver works with the device.
    is_active: AtomicBool,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

/// What is known of a guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Whether the guest has a driver at work.
    pub active: bool,
    /// Bytes that the guest is to give away.
    pub target: u64,
    /// Bytes that it has given away.
    pub actual: u64,
    /// Bytes that went back to the host so far because the guest reported them free.
    pub reported: u64,
    /// What the guest told of itself last, by name.
    pub stats: BTreeMap<&'static str, u64>,
}

impl BalloonControl {
    /// Asks the guest to give away so many bytes, in whole pages.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if self.shared.target.swap(pages, Ordering::AcqRel) != pages
            && let Some(interrupt) = self.shared.interrupt().clone()
        {
            interrupt.config_changed();
        }
    }

    /// What is known now. The guest is asked for newer figures, which it gives in its own time; the balloon's
    /// workers have to be woken for that.
    pub fn status(&self) -> BalloonStatus {
        let shared = &self.shared;
        shared.wants_stats.store(true, Ordering::Release);
        BalloonStatus {
            active: shared.is_active.load(Ordering::Acquire),
            target: u64::from(shared.target.load(Ordering::Acquire)) * PAGE,
            actual: u64::from(shared.actual.load(Ordering::Acquire)) * PAGE,
            reported: shared.reported.load(Ordering::Relaxed),
            stats: shared.stats().clone(),
        }
    }
}

impl Shared {
    fn interrupt(&self) -> MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Saved form of [`Balloon`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonSaved {
    /// Pages that the guest is to give away.
    pub target_pages: u32,
    /// Pages that it has given away.
    pub actual_pages: u32,
}

impl Default for Balloon {
    fn default() -> Balloon {
        Balloon::new()
    }
}

impl Balloon {
    /// Creates a balloon with nothing in it.
    pub fn new() -> Balloon {
        Balloon { control: BalloonControl::default() }
    }

    /// The host's hand on it.
    pub fn control(&self) -> BalloonControl {
        self.control.clone()
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::BALLOON
    }

    fn features(&self) -> u64 {
        feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Inflate, deflate, statistics, reporting (§5.5.2). There is no queue for hints, and Linux numbers those
        // that there are.
        vec![QUEUE_SIZE; 4]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; config::LEN];
        let load = |pages: &AtomicU32| pages.load(Ordering::Acquire).to_le_bytes();
        bytes[config::NUM_PAGES..][..4].copy_from_slice(&load(&self.control.shared.target));
        bytes[config::ACTUAL..][..4].copy_from_slice(&load(&self.control.shared.actual));
        read_structure(&bytes, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (true, Ok(pages)) = (offset == config::ACTUAL as u64, data.try_into()) {
            self.control.shared.actual.store(u32::from_le_bytes(pages), Ordering::Release);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        let shared = &self.control.shared;
        *shared.interrupt() = Some(activation.interrupt.clone());
        shared.is_active.store(true, Ordering::Release);
        // Without the queue for statistics the one for reports takes its number.
        let has_stats = activation.features & feature::STATS_VQ != 0;
        let [inflate, deflate] = [0, 1].map(|index| activation.take_queue(index));
        let stats = has_stats.then(|| activation.take_queue(2)).flatten();
        let reports = activation.take_queue(2 + has_stats as usize);
        let unused = activation.take_queue(3);
        vec![Box::new(BalloonWork::new([inflate, deflate, stats, reports], unused, shared.clone()))]
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        *self.control.shared.interrupt() = None;
        self.control.shared.is_active.store(false, Ordering::Release);
        let works =
            workers.into_iter().filter_map(|work| (work as Box<dyn Any>).downcast::<BalloonWork>().ok());
        works.flat_map(|work| work.into_queues()).collect()
    }

    fn reset(&mut self) {
        self.control.shared.actual.store(0, Ordering::Release);
        self.control.shared.stats().clear();
    }

    fn save(&self) -> DeviceSaved {
        let load = |pages: &AtomicU32| pages.load(Ordering::Acquire);
        DeviceSaved::Balloon(BalloonSaved {
            target_pages: load(&self.control.shared.target),
            actual_pages: load(&self.control.shared.actual),
        })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        let DeviceSaved::Balloon(saved) = saved else {
            return Err(RestoreError::new("balloon", "it is the state of another kind of device"));
        };
        self.control.shared.target.store(saved.target_pages, Ordering::Release);
        self.control.shared.actual.store(saved.actual_pages, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
