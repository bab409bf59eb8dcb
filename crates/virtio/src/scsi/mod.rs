//! The SCSI host (virtio 1.2, §5.6): disks and CD-ROM drives, each a target with one logical unit.
//!
//! What a command asks for is found out by the crate `scsi`; here it is carried out, one at a time for each
//! request queue, between guest memory and the disk. What waits for the limit of its disk holds up no other disk;
//! task management can end it.

mod control;
pub mod spec;
mod tasks;
mod unit;
mod work;

pub use unit::{TargetConfig, TargetSaved};

use crate::device::{Activation, DeviceSaved, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use ::device::state::RestoreError;
use ::scsi::DiscError;
use control::ControlWork;
use disk::Disk;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tasks::Tasks;
use unit::Unit;
use work::RequestWork;

/// Targets of one host.
pub const TARGETS_MAX: usize = 255;
const QUEUE_SIZE: u16 = 128;
/// Sectors of one request, which a driver heeds.
const SECTORS_MAX: u32 = 8192;

type Targets = Arc<[Mutex<Unit>]>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Targets whose disks have another size, of which the driver has not been told yet.
type Changes = Arc<Mutex<BTreeSet<u8>>>;

/// A SCSI host.
pub struct Scsi {
    targets: Targets,
    changes: Changes,
    tasks: Arc<Tasks>,
    queues: u16,
    sizes: Sizes,
}

/// Lengths that a driver may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sizes {
    cdb: u32,
    sense: u32,
}

impl Sizes {
    const DEFAULT: Sizes = Sizes { cdb: spec::CDB_SIZE, sense: spec::SENSE_SIZE };
    /// No command or sense data is longer.
    const MAX: u32 = 256;

    fn is_fit(self) -> bool {
        [self.cdb, self.sense].into_iter().all(|size| size <= Sizes::MAX)
    }
}

/// Saved form of [`Scsi`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScsiSaved {
    targets: Vec<TargetSaved>,
    sizes: Sizes,
}

/// Changes what is at a host's targets.
#[derive(Clone)]
pub struct ScsiControl {
    targets: Targets,
    changes: Changes,
}

impl ScsiControl {
    /// Puts another disc into the drive at a target, or takes it out; `force` although the guest holds it.
    ///
    /// # Errors
    /// When there is no drive, or the guest holds the disc.
    pub fn change_disc(
        &self,
        target: usize,
        disc: Option<Arc<dyn Disk>>,
        force: bool,
    ) -> Result<(), DiscError> {
        let unit = self.targets.get(target).ok_or(DiscError::NoSuchDrive)?;
        lock(unit).change_disc(disc, force)
    }

    /// Has the driver told that the disk at a target has another size. The device's workers have to be woken.
    pub fn resized(&self, target: u8) {
        lock(&self.changes).insert(target);
    }
}

impl Scsi {
    /// Creates a host with these targets, by number, and so many request queues.
    ///
    /// # Panics
    /// With more than [`TARGETS_MAX`] targets, or no queue: the caller checks what users write.
    pub fn new(targets: Vec<TargetConfig>, queues: u16) -> Scsi {
        assert!(targets.len() <= TARGETS_MAX && (1..=64).contains(&queues), "numbers within limits");
        let targets = targets.into_iter().map(|target| Mutex::new(Unit::new(target))).collect();
        Scsi { targets, changes: Changes::default(), tasks: Arc::default(), queues, sizes: Sizes::DEFAULT }
    }

    /// Changes what is at its targets, from any thread.
    pub fn control(&self) -> ScsiControl {
        ScsiControl { targets: self.targets.clone(), changes: self.changes.clone() }
    }

    /// `struct virtio_scsi_config` (§5.6.4).
    fn structure(&self) -> [u8; spec::CONFIG_LEN] {
        let mut bytes = [0; spec::CONFIG_LEN];
        let words = [
            u32::from(self.queues),
            u32::from(QUEUE_SIZE) - 2,
            SECTORS_MAX,
            u32::from(QUEUE_SIZE),
            spec::EVENT_LEN,
            self.sizes.sense,
            self.sizes.cdb,
            // Channel 0 and the highest target, 16 bits each.
            (self.targets.len().max(1) as u32 - 1) << 16,
            // The highest LUN.
            0,
        ];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl VirtioDevice for Scsi {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::SCSI
    }

    fn features(&self) -> u64 {
        spec::F_CHANGE | spec::F_HOTPLUG
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; spec::REQUEST_QUEUE + usize::from(self.queues)]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_structure(&self.structure(), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        let sizes = match offset {
            spec::SENSE_SIZE_AT => Sizes { sense: value, ..self.sizes },
            spec::CDB_SIZE_AT => Sizes { cdb: value, ..self.sizes },
            _ => return,
        };
        if sizes.is_fit() {
            self.sizes = sizes;
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        let mut works: Vec<Box<dyn Work>> = Vec::new();
        self.tasks.clear();
        let control = activation.take_queue(spec::CONTROL_QUEUE);
        let events = activation.take_queue(spec::EVENT_QUEUE);
        if control.is_some() || events.is_some() {
            let changes = (activation.features & spec::F_CHANGE != 0).then(|| self.changes.clone());
            let (targets, tasks) = (self.targets.clone(), self.tasks.clone());
            works.push(Box::new(ControlWork::new(control, events, targets, tasks, changes)));
        }
        for index in spec::REQUEST_QUEUE..spec::REQUEST_QUEUE + usize::from(self.queues) {
            if let Some(queue) = activation.take_queue(index) {
                let (targets, tasks) = (self.targets.clone(), self.tasks.clone());
                works.push(Box::new(RequestWork::new(queue, targets, tasks, self.sizes)));
            }
        }
        works
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        let mut queues = Vec::new();
        for work in workers {
            match (work as Box<dyn Any>).downcast::<RequestWork>() {
                Ok(work) => queues.push(work.into_queue()),
                Err(other) => {
                    let control = other.downcast::<ControlWork>();
                    queues.extend(control.into_iter().flat_map(|work| work.into_queues()));
                }
            }
        }
        queues
    }

    fn reset(&mut self) {
        self.sizes = Sizes::DEFAULT;
        // Whoever starts anew asks for sizes.
        lock(&self.changes).clear();
        self.targets.iter().for_each(|unit| lock(unit).reset());
    }

    fn save(&self) -> DeviceSaved {
        let targets = self.targets.iter().map(|unit| lock(unit).save()).collect();
        DeviceSaved::Scsi(ScsiSaved { targets, sizes: self.sizes })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        let refused = |why: &str| RestoreError::new("SCSI host", why.to_owned());
        let DeviceSaved::Scsi(saved) = saved else {
            return Err(refused("it is the state of another kind of device"));
        };
        if saved.targets.len() != self.targets.len() || !saved.sizes.is_fit() {
            return Err(refused("it has other targets, or lengths that cannot be"));
        }
        for (unit, saved) in self.targets.iter().zip(&saved.targets) {
            match (&*lock(unit), saved) {
                (Unit::Disk(_, disk, _), TargetSaved::Disk(size)) if disk.info().size == *size => {}
                (Unit::Cd(..), TargetSaved::Cd(saved)) if saved.event <= 3 => {}
                _ => return Err(refused("a target is something else, or of another size")),
            }
        }
        for (unit, saved) in self.targets.iter().zip(saved.targets) {
            if let (Unit::Cd(drive, _), TargetSaved::Cd(saved)) = (&mut *lock(unit), saved) {
                drive.restore(saved)?;
            }
        }
        self.sizes = saved.sizes;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
