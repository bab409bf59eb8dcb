//! Drives by their SCSI commands: CD-ROM drives ([`Cdrom`]) and disks ([`ScsiDisk`]); and, for guests without virtio
//! drivers, the AHCI controller ([`ahci`]) that has such drives and disks at its ports.
//!
//! What a command asks for is found out apart from doing it: a drive says which bytes of its disc are wanted,
//! and the controller moves them between disk and guest memory, on a thread of its own.

#![forbid(unsafe_code)]

pub mod ahci;
mod block;
mod cdrom;

pub mod fuzzing;
mod sense;

pub use ahci::DiscError;
pub use block::{DiskAction, ScsiDisk};
pub use cdrom::{Action, BLOCK, Cdrom, CdromSaved};
pub use sense::Sense;
