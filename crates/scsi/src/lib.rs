//! Storage hardware for guests without virtio drivers: CD-ROM drives by their SCSI commands ([`Cdrom`]), and the
//! AHCI controller ([`ahci`]) that has such drives and disks at its ports.
//!
//! What a command asks for is found out apart from doing it: a drive says which bytes of its disc are wanted,
//! and the controller moves them between disk and guest memory, on a thread of its own.

#![forbid(unsafe_code)]

pub mod ahci;
mod cdrom;
pub mod fuzzing;
mod sense;

pub use cdrom::{Action, BLOCK, Cdrom, CdromSaved};
pub use sense::Sense;
