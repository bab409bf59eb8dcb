//! Appliances of other programs: OVF descriptors (DMTF DSP0243, version 2.1.1) and OVA archives.
//!
//! An OVA is a tar archive: the descriptor first, then if there is one the list of checksums (`.mf`), then the
//! disks.

mod checksums;
mod read;
mod write;

pub(crate) use checksums::{CHECKSUMS_LEN_MAX, Checksums};
pub(crate) use read::{Appliance, DESCRIPTOR_LEN_MAX, DiskSource};
pub(crate) use write::{DiskFile, descriptor};
