//! A snapshot as it lies in its folder: the manifest.
//!
//! ```text
//! NAME/
//!   manifest.json   this, written last
//!   state.json      processors, devices, clock
//!   memory          RAM: page n at byte n * 4096; holes are zero, or as in the parent
//!   disk0.img …     disks that the guest may write, raw
//!   NAME.layer …    or as qcow2 images, which machines share
//! ```
//!
//! `manifest.json` is `{"arnia_snapshot": 1, "blake3": "…", "manifest": {…}}`, where `blake3` is the hash
//! of the bytes of the manifest's own text, from its first brace to its last. Fields are only ever added;
//! a change of meaning raises [`FORMAT`]. `docs/reference/snapshots.md` tells all of it.

use super::config::VmConfig;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::path::PathBuf;

/// The highest version of the format, which this program reads. It writes 1 where that can say all.
pub const FORMAT: u32 = 2;

/// Name of the manifest's file.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file with the state of processors and devices.
pub const STATE_FILE: &str = "state.json";
/// Name of the file with RAM.
pub const MEMORY_FILE: &str = "memory";
/// Most bytes that a name has.
pub const NAME_LEN_MAX: usize = 64;
/// Most stretches that [`Memory::parts`] has.
pub const PARTS_MAX: usize = 8192;
/// Most snapshots in a chain from a full one to an incremental one, both included.
pub const CHAIN_LEN_MAX: usize = 64;

/// The manifest's file: the manifest with its check sum around it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<'a> {
    /// [`FORMAT`] when written. Its name tells what the file is.
    pub arnia_snapshot: u32,
    /// Hash of the manifest's text.
    pub blake3: String,
    /// The manifest.
    #[serde(borrow)]
    pub manifest: &'a RawValue,
}

/// All that is known of a snapshot without reading its other files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// This snapshot's own identity, a UUID.
    pub id: String,
    /// Version of the program that wrote it.
    pub program: String,
    /// When the machine stood still, in milliseconds since 1970 (UTC).
    pub created_ms: u64,
    /// What an incremental snapshot builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The engine that executed the guest.
    pub engine: String,
    /// Name of the CPU model.
    pub cpu_model: String,
    /// What the guest's processors say of themselves.
    pub cpuid: Vec<CpuidLeaf>,
    /// Frequency of the guest's time-stamp counter in Hz.
    pub tsc_hz: u64,
    /// The machine, as it was started. Paths are as they were then.
    pub machine: VmConfig,
    /// The machine's UUID.
    pub uuid: String,
    /// MAC addresses of the network cards.
    pub macs: Vec<String>,
    /// Processors, devices, clock.
    pub state: FileEntry,
    /// RAM.
    pub memory: Memory,
    /// Disks, in the order of the machine's.
    pub disks: Vec<SavedDisk>,
}

/// The snapshot that an incremental one builds on: a folder beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The name it had.
    pub name: String,
    /// Its identity.
    pub id: String,
}

/// One CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, if the leaf heeds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name.
    pub file: String,
    /// Its length in bytes.
    pub size: u64,
    /// Hash of its contents. For the state the plain one. For RAM and disks that of each MiB that is not
    /// all zero: its number (64 bits, little-endian), then its bytes; so holes cost nothing.
    pub blake3: String,
}

/// RAM in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The file.
    #[serde(flatten)]
    pub file: FileEntry,
    /// The pages that it holds, as first page and count, ascending; all others are as in the parent.
    /// Absent when it holds all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<(u64, u64)>>,
}

/// A disk in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedDisk {
    /// Its contents at that moment, raw.
    Copy(FileEntry),
    /// A qcow2 image that nobody changes any more, and those that it stands on (format 2).
    Layers(Layers),
    /// A disk that the guest may only read is not copied.
    Outside(OutsideDisk),
}

/// A disk as it is kept without copying it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// Names of files of the snapshot, each standing on the next; the first is the disk. Machines have links to the
    /// same files.
    pub files: Vec<String>,
    /// What the last one stands on, nearest first: not part of the snapshot, and must still be as it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub below: Vec<PathBuf>,
    /// Size of the disk in bytes.
    pub size: u64,
}

/// A disk that is not part of the snapshot, and must still be as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideDisk {
    /// Where it was.
    pub path: PathBuf,
    /// Its size as the guest sees it, in bytes.
    pub size: u64,
}

/// Whether a snapshot can have this name: letters, digits, `.`, `_` and `-`, beginning with a letter or a
/// digit, at most [`NAME_LEN_MAX`].
pub fn is_valid_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric();
    name.len() <= NAME_LEN_MAX
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_anywhere_else() {
        for name in ["a", "before-upgrade", "2026.11.28_1"] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(!is_valid_name(name), "{name}");
        }
    }
}
