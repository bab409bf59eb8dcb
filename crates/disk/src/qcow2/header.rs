//! The header, its extensions and the snapshot table: parsing and checking, apart from I/O on data.

use super::spec::*;
use crate::bytes::{be16, be32, be64};
use std::fmt;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate streams with a window of 4 KiB.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        })
    }
}

/// What a header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Size of the disk in bytes.
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_at: u64,
    pub(super) reftable_at: u64,
    pub(super) reftable_clusters: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_at: u64,
    /// log2 of the bits of a reference count.
    pub(super) refcount_order: u32,
    pub(super) is_dirty: bool,
    pub(super) is_corrupt: bool,
    pub(super) lazy_refcounts: bool,
    pub(super) autoclear: u64,
    pub(super) compression: Compression,
    pub(super) backing: Option<Backing>,
    /// Persistent bitmaps, if there are any that are up to date.
    pub(super) bitmaps: Option<Bitmaps>,
}

/// Where the persistent bitmaps of an image are described; nothing of it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitmaps {
    pub(super) number: u32,
    pub(super) directory_at: u64,
    /// In bytes.
    pub(super) directory_len: u64,
}

/// The backing file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as it stands in the image: a path, relative to the image's folder or absolute.
    pub name: String,
    /// Its format, if the image says so.
    pub format: Option<String>,
}

/// Why a header is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// It is damaged or no such image.
    Bad(String),
    /// It needs something that is not supported.
    Unsupported(String),
}

fn bad<T>(why: impl Into<String>) -> Result<T, HeaderFault> {
    Err(HeaderFault::Bad(why.into()))
}

fn unsupported<T>(why: impl Into<String>) -> Result<T, HeaderFault> {
    Err(HeaderFault::Unsupported(why.into()))
}

impl Header {
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many bytes of the disk one L2 table describes.
    pub(super) fn l2_span(&self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    /// Parses the first bytes of a file; `bytes` holds the first cluster, or all of a shorter file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, HeaderFault> {
        if bytes.len() < HEADER_LEN_V2 || bytes[0..4] != MAGIC {
            return bad("it is not a qcow2 image");
        }
        let version = be32(bytes, 4);
        if !(2..=3).contains(&version) {
            return unsupported(format!("it is of version {version}; 2 and 3 are known"));
        }
        let cluster_bits = be32(bytes, 20);
        if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return bad(format!("its cluster size is 2^{cluster_bits} bytes; 2^9 to 2^21 are possible"));
        }
        if be32(bytes, 32) != 0 {
            return unsupported("it is encrypted");
        }
        let (mut incompatible, mut compatible, mut autoclear) = (0, 0, 0);
        let (mut refcount_order, mut header_len, mut compression) = (4, HEADER_LEN_V2, Compression::Zlib);
        if version == 3 {
            if bytes.len() < HEADER_LEN_V3 {
                return bad("its header is cut off");
            }
            (incompatible, compatible, autoclear) = (be64(bytes, 72), be64(bytes, 80), be64(bytes, 88));
            (refcount_order, header_len) = (be32(bytes, 96), be32(bytes, 100) as usize);
            if header_len < HEADER_LEN_V3 || header_len > bytes.len() || header_len > 1 << cluster_bits {
                return bad("its header has an impossible length");
            }
            if refcount_order > 6 {
                return bad("its reference counts have an impossible width");
            }
            if header_len > HEADER_LEN_V3 {
                compression = match bytes[HEADER_LEN_V3] {
                    0 => Compression::Zlib,
                    1 => Compression::Zstd,
                    other => return unsupported(format!("it is compressed in an unknown way ({other})")),
                };
            }
        }
        let known = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION;
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return unsupported("its data lies in an external data file");
        }
        if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 {
            return unsupported("it has extended L2 entries (subclusters)");
        }
        if incompatible & !known != 0 {
            return unsupported(format!(
                "it has incompatible features that are not known ({:#x})",
                incompatible & !known
            ));
        }
        if (compression != Compression::Zlib) != (incompatible & INCOMPATIBLE_COMPRESSION != 0) {
            return bad("its compression type and its feature bits contradict each other");
        }
        let header = Header {
            version,
            cluster_bits,
            size: be64(bytes, 24),
            l1_entries: be32(bytes, 36),
            l1_at: be64(bytes, 40),
            reftable_at: be64(bytes, 48),
            reftable_clusters: be32(bytes, 56),
            snapshots: be32(bytes, 60),
            snapshots_at: be64(bytes, 64),
            refcount_order,
            is_dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            is_corrupt: incompatible & INCOMPATIBLE_CORRUPT != 0,
            lazy_refcounts: compatible & COMPATIBLE_LAZY_REFCOUNTS != 0,
            autoclear,
            compression,
            backing: None,
            bitmaps: None,
        };
        header.check()?;
        let extensions = extensions(bytes, header_len)?;
        let name = backing_name(bytes, cluster_bits)?;
        let backing = name.map(|name| Backing { name, format: extensions.backing_format });
        // Without the bit a program has written to the image that knew nothing of them.
        let bitmaps = extensions.bitmaps.filter(|_| autoclear & AUTOCLEAR_BITMAPS != 0);
        Ok(Header { backing, bitmaps, ..header })
    }

    fn check(&self) -> Result<(), HeaderFault> {
        let aligned = |at: u64| at.is_multiple_of(self.cluster_size());
        // Places beyond 2^56 do not fit into table entries.
        let within = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= 1 << 56);
        if !self.size.is_multiple_of(512) || self.size > 1 << 62 {
            return bad("its disk has an impossible size");
        }
        let l1_bytes = self.l1_entries as u64 * 8;
        if l1_bytes > L1_BYTES_MAX {
            return bad("its L1 table is too large");
        }
        if (self.l1_entries as u64) < self.size.div_ceil(self.l2_span()) {
            return bad("its L1 table is too small for its disk");
        }
        if self.l1_entries > 0 && (!aligned(self.l1_at) || self.l1_at == 0 || !within(self.l1_at, l1_bytes)) {
            return bad("its L1 table lies at an impossible place");
        }
        let reftable_bytes = (self.reftable_clusters as u64) << self.cluster_bits;
        if reftable_bytes > REFTABLE_BYTES_MAX {
            return bad("its refcount table is too large");
        }
        if self.reftable_clusters == 0 {
            return bad("it has no refcount table");
        }
        if !aligned(self.reftable_at) || self.reftable_at == 0 || !within(self.reftable_at, reftable_bytes) {
            return bad("its refcount table lies at an impossible place");
        }
        if self.snapshots > SNAPSHOTS_MAX {
            return bad("it has too many snapshots");
        }
        if self.snapshots > 0
            && (!aligned(self.snapshots_at) || self.snapshots_at == 0 || !within(self.snapshots_at, 0))
        {
            return bad("its snapshot table lies at an impossible place");
        }
        Ok(())
    }
}

/// What header extensions say.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    bitmaps: Option<Bitmaps>,
}

fn extensions(bytes: &[u8], header_len: usize) -> Result<Extensions, HeaderFault> {
    let (mut at, mut found) = (header_len, Extensions::default());
    // What does not fit into the first cluster ends the list, as does the mark.
    while at + 8 <= bytes.len() {
        let (kind, len) = (be32(bytes, at), be32(bytes, at + 4) as usize);
        at += 8;
        if kind == EXTENSION_END {
            break;
        }
        if len > bytes.len() - at {
            return bad("a header extension is cut off");
        }
        let data = &bytes[at..at + len];
        match kind {
            EXTENSION_BACKING_FORMAT => {
                let text = std::str::from_utf8(data)
                    .map_err(|_| HeaderFault::Bad("its backing format is no text".into()))?;
                found.backing_format = Some(text.into());
            }
            EXTENSION_BITMAPS if len != EXTENSION_BITMAPS_LEN => {
                return bad("the header extension about its bitmaps has an impossible length");
            }
            EXTENSION_BITMAPS => {
                found.bitmaps = Some(Bitmaps {
                    number: be32(data, 0),
                    directory_len: be64(data, 8),
                    directory_at: be64(data, 16),
                });
            }
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Ok(found)
}

fn backing_name(bytes: &[u8], cluster_bits: u32) -> Result<Option<String>, HeaderFault> {
    let (at, len) = (be64(bytes, 8), be32(bytes, 16));
    if at == 0 {
        return Ok(None);
    }
    if len == 0 || len > BACKING_NAME_MAX || at.saturating_add(len as u64) > 1 << cluster_bits {
        return bad("the name of its backing file lies at an impossible place");
    }
    let Some(name) = bytes.get(at as usize..at as usize + len as usize) else {
        return bad("the name of its backing file is cut off");
    };
    match std::str::from_utf8(name) {
        Ok(name) if !name.contains('\0') => Ok(Some(name.to_owned())),
        _ => bad("the name of its backing file is no text"),
    }
}

/// An internal snapshot: a frozen L1 table, and perhaps a saved machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub seconds: u32,
    /// Length of the saved state of the machine in bytes; 0 when only the disk was saved.
    pub vm_state_len: u64,
    /// Size of the disk when it was made.
    pub disk_size: u64,
    pub(super) l1_at: u64,
    pub(super) l1_entries: u32,
}

/// Parses the entry at the beginning of `bytes`; also its length.
pub(super) fn parse_snapshot(bytes: &[u8], header: &Header) -> Result<(Snapshot, usize), HeaderFault> {
    let cut_off = || HeaderFault::Bad("its snapshot table is cut off".into());
    let fixed = bytes.get(..40).ok_or_else(cut_off)?;
    let (id_len, name_len) = (be16(fixed, 12) as usize, be16(fixed, 14) as usize);
    let extra_len = be32(fixed, 36);
    if extra_len > SNAPSHOT_EXTRA_MAX {
        return bad("a snapshot has too much extra data");
    }
    let extra_len = extra_len as usize;
    let len = 40 + extra_len + id_len + name_len;
    let rest = bytes.get(40..len).ok_or_else(cut_off)?;
    let (extra, names) = rest.split_at(extra_len);
    let vm_state_len = if extra_len >= 8 { be64(extra, 0) } else { be32(fixed, 32) as u64 };
    let disk_size = if extra_len >= 16 { be64(extra, 8) } else { header.size };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let snapshot = Snapshot {
        id: text(&names[..id_len]),
        name: text(&names[id_len..]),
        seconds: be32(fixed, 16),
        vm_state_len,
        disk_size,
        l1_at: be64(fixed, 0),
        l1_entries: be32(fixed, 8),
    };
    let l1_bytes = snapshot.l1_entries as u64 * 8;
    let place = snapshot.l1_at.is_multiple_of(header.cluster_size())
        && snapshot.l1_at.checked_add(l1_bytes).is_some_and(|end| end <= 1 << 56);
    if l1_bytes > L1_BYTES_MAX || !place {
        return bad(format!("the L1 table of snapshot {:?} is at an impossible place", snapshot.name));
    }
    if disk_size % 512 != 0
        || disk_size > 1 << 62
        || (snapshot.l1_entries as u64) < disk_size.div_ceil(header.l2_span())
    {
        return bad(format!("the L1 table of snapshot {:?} is too small for its disk", snapshot.name));
    }
    Ok((snapshot, len.next_multiple_of(8)))
}

/// A header to be written, with the name of a backing file.
pub(super) fn encode(header: &Header) -> Vec<u8> {
    let mut bytes = vec![0; if header.version == 2 { HEADER_LEN_V2 } else { HEADER_LEN_OWN }];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC);
    put(4, &header.version.to_be_bytes());
    put(20, &header.cluster_bits.to_be_bytes());
    put(24, &header.size.to_be_bytes());
    put(36, &header.l1_entries.to_be_bytes());
    put(40, &header.l1_at.to_be_bytes());
    put(48, &header.reftable_at.to_be_bytes());
    put(56, &header.reftable_clusters.to_be_bytes());
    put(60, &header.snapshots.to_be_bytes());
    put(64, &header.snapshots_at.to_be_bytes());
    if header.version >= 3 {
        let flag = |is: bool, bit: u64| if is { bit } else { 0 };
        let is_zstd = header.compression == Compression::Zstd;
        let incompatible = flag(header.is_dirty, INCOMPATIBLE_DIRTY)
            | flag(header.is_corrupt, INCOMPATIBLE_CORRUPT)
            | flag(is_zstd, INCOMPATIBLE_COMPRESSION);
        put(72, &incompatible.to_be_bytes());
        put(80, &flag(header.lazy_refcounts, COMPATIBLE_LAZY_REFCOUNTS).to_be_bytes());
        put(88, &header.autoclear.to_be_bytes());
        put(96, &header.refcount_order.to_be_bytes());
        put(100, &(HEADER_LEN_OWN as u32).to_be_bytes());
        put(104, &[is_zstd as u8]);
    }
    if let Some(format) = header.backing.as_ref().and_then(|backing| backing.format.as_ref()) {
        bytes.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        bytes.extend((format.len() as u32).to_be_bytes());
        bytes.extend(format.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend([0; 8]);
    if let Some(backing) = &header.backing {
        let at = bytes.len() as u64;
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[16..20].copy_from_slice(&(backing.name.len() as u32).to_be_bytes());
        bytes.extend(backing.name.as_bytes());
    }
    bytes
}
