//! Virtio devices over PCI: console, block, network, entropy, vsock (virtio 1.2).
//!
//! ```text
//!  guest driver ─ registers ─> transport::VirtioPci ─ activate/deactivate ─> VirtioDevice
//!       │                         │   ^                                          │ makes
//!       │                  notify │   │ Interrupt                                v
//!       └── rings in RAM ─────────┴───┴──────── queue::Queue <── serves ── worker::Work on a thread
//! ```
//!
//! - [`VirtioPci`] is a PCI function (`device::pci::PciFunction`) around any [`VirtioDevice`];
//! - a [`VirtioDevice`] has features and configuration and, once its driver is ready, makes
//!   [`worker::Work`]s, each of which the transport runs on a thread of its own;
//! - a [`queue::Queue`] is one virtqueue, owned by the worker that serves it.
//!
//! **What a guest does wrong** is answered as the specification says: a bad request by its status, a
//! ring that makes no sense by `DEVICE_NEEDS_RESET`, at which the queue stands still until the driver
//! resets the device. Nothing that a guest writes makes a device panic, hang or grow without bound.
//!
//! **Threads.** vCPU threads touch registers only; a notification is one write to an eventfd. All work
//! on queues, disks and networks is done by worker threads without a lock held. Pausing, resetting and
//! taking away bus mastering stop the workers: cancel, drain, hand back.
//!
//! | device | module | queues |
//! |---|---|---|
//! | block | [`blk`] | one or more, a thread each |
//! | network card | [`net`] | receive, transmit |
//! | console | [`console`] | receive, transmit |
//! | balloon | [`balloon`] | inflate, deflate, statistics, reports |
//! | entropy | [`rng`] | one |
//! | folders of the host | [`fs`] | urgent requests, requests |
//! | socket | [`vsock`] | receive, transmit, event |

pub mod balloon;
pub mod blk;
pub mod console;
mod device;
mod error;
pub mod fs;
#[cfg(any(test, feature = "test"))]
pub mod fuzzing;
mod kick;
pub mod net;
pub mod queue;
pub mod rng;
pub mod scsi;
pub mod serial;
pub mod spec;
#[cfg(any(test, feature = "test"))]
pub mod test;
pub mod transport;
pub mod vsock;
pub mod worker;

pub use crate::device::{Activation, DeviceSaved, Interrupt, VirtioDevice};
pub use crate::error::{Error, ErrorKind};
pub use crate::kick::Kick;
pub use crate::transport::{VirtioPci, VirtioPciSaved, notify_offset};
