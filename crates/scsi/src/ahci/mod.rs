//! The AHCI controller (Serial ATA AHCI 1.3.1): disks and CD-ROM drives for firmware and systems of any kind.
//!
//! ```text
//! registers (BAR 5) ──> Registers ── issued ──> the controller's thread: Work
//!      ^                                          │ list, table, FIS: guest memory
//!      └────────── done, FIS, interrupt <─────────┴ Disk
//! ```
//!
//! Commands of a port are carried out one after the other, by one thread for all ports; there is no native command
//! queueing. What a command does to memory and disk happens with no lock held.

mod command;
mod device;
mod identify;
mod model;
pub mod spec;
mod work;

pub use device::{Ahci, AhciSaved, DriveConfig};
pub use model::{Effect, Registers};
pub use work::DiscError;
