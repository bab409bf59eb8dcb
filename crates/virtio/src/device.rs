//! What a virtio device is, apart from how the guest reaches it.

use crate::queue::{Queue, RingError};
use crate::worker::Work;
use device::state::RestoreError;
use memory::Ram;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a device gets its driver's attention. Implemented by the transport; callable from any thread.
pub trait Interrupt: Send + Sync {
    /// Interrupts for queue `queue`: entries were added to its used ring.
    fn queue_used(&self, queue: u16);

    /// Interrupts for a change of the device's configuration.
    fn config_changed(&self);

    /// Tells the driver that the device is out of order until it is reset, since `queue` makes no sense.
    fn needs_reset(&self, queue: u16, error: RingError);
}

/// What a device gets when its driver is ready (`DRIVER_OK`), or when it goes on after a pause.
pub struct Activation {
    /// The negotiated features.
    pub features: u64,
    /// The device's queues by number; `None` for those that the driver has not enabled.
    pub queues: Vec<Option<Queue>>,
    /// The guest's memory.
    pub ram: Arc<Ram>,
    /// How to interrupt the driver other than for a queue.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Takes queue `index`, if the driver has enabled it.
    pub fn take_queue(&mut self, index: usize) -> Option<Queue> {
        self.queues.get_mut(index)?.take()
    }
}

/// A virtio device: features, configuration, and workers that serve its queues. It has no thread and no
/// lock; the transport gives it both.
///
/// ```text
///            activate                     deactivate
///   at rest ─────────> workers at work ─────────────> at rest … reset, save, restore
/// ```
///
/// The transport runs each [`Work`] from `activate` on a thread of its own. To stop (for a pause, a
/// reset, or because the guest took away bus mastering) it cancels the threads, lets each drain what is
/// in flight, and hands the workers back by `deactivate`. Configuration is read and written in both
/// states.
pub trait VirtioDevice: Send {
    /// The device type (§5).
    fn device_type(&self) -> u16;

    /// The features that it offers, besides those of the transport and the rings.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two of at most 1024.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads `data.len()` bytes of device configuration. `data` comes zeroed; what is beyond the
    /// structure stays so.
    fn config_read(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration. Most devices have nothing writable.
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    /// Begins to work with these queues.
    fn activate(&mut self, activation: Activation) -> Vec<Box<dyn Work>>;

    /// Takes back its workers, drained, and returns the queues they had.
    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue>;

    /// Forgets everything the driver has set up. Called at rest.
    fn reset(&mut self) {}

    /// The state to be saved. Called at rest.
    fn save(&self) -> DeviceSaved;

    /// Takes over a state, checking it. Called at rest; on error the device is as before.
    ///
    /// # Errors
    /// When it is the state of another device or cannot be.
    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError>;
}

/// The state of a device, besides its transport's and its queues'. A saved form: add variants and
/// fields, never change one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "device", rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceSaved {
    /// A block device.
    Blk(crate::blk::BlkSaved),
    /// A network card.
    Net(crate::net::NetSaved),
    /// A console.
    Console(crate::console::ConsoleSaved),
    /// An entropy source.
    Rng,
    /// A balloon.
    Balloon(crate::balloon::BalloonSaved),
    /// A SCSI host.
    Scsi(crate::scsi::ScsiSaved),
    /// A socket device.
    Vsock(crate::vsock::VsockSaved),
    /// A serial port.
    Serial(crate::serial::SerialSaved),
    /// Folders of the host.
    Fs(crate::fs::FsSaved),
}

/// Copies the part of a configuration structure that an access asks for.
pub(crate) fn read_structure(structure: &[u8], offset: u64, data: &mut [u8]) {
    for (byte, at) in data.iter_mut().zip(offset..) {
        if let Some(value) = usize::try_from(at).ok().and_then(|at| structure.get(at)) {
            *byte = *value;
        }
    }
}
