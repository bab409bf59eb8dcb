//! Constants of the format (QEMU, docs/interop/qcow2.rst). Numbers are big-endian in the file.

pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Length of the header of version 2, and least length of that of version 3.
pub(super) const HEADER_LEN_V2: usize = 72;
pub(super) const HEADER_LEN_V3: usize = 104;
/// The header that is written here: with the compression type, padded to a multiple of 8.
pub(super) const HEADER_LEN_OWN: usize = 112;

/// Offsets of header fields that are changed later.
pub(super) const SIZE_AT: u64 = 24;
pub(super) const L1_SIZE_AT: u64 = 36;
pub(super) const REFTABLE_AT: u64 = 48;
pub(super) const INCOMPATIBLE_AT: u64 = 72;
pub(super) const AUTOCLEAR_AT: u64 = 88;

pub(super) const CLUSTER_BITS_MIN: u32 = 9;
pub(super) const CLUSTER_BITS_MAX: u32 = 21;

/// Incompatible features: who does not know one must not open the image.
pub(super) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
pub(super) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(super) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
pub(super) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(super) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Compatible features.
pub(super) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;

/// Header extensions.
pub(super) const EXTENSION_END: u32 = 0;
pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
pub(super) const EXTENSION_BITMAPS: u32 = 0x2385_2875;
pub(super) const EXTENSION_BITMAPS_LEN: usize = 24;

/// Autoclear features: who changes an image without knowing one clears it.
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1 << 0;

/// An entry of an L1 or L2 table: the reference count of what it points to is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// An entry of an L2 table: a compressed cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// An entry of an L2 table of version 3: reads as zeroes.
pub(super) const ZERO: u64 = 1 << 0;
/// Where an entry of an L1 or L2 table points to.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry, and of an uncompressed L2 entry, that are reserved.
pub(super) const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
pub(super) const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Where an entry of the refcount table points to.
pub(super) const REFTABLE_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// Limits of what is read into memory, those of QEMU.
pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
pub(super) const REFTABLE_BYTES_MAX: u64 = 8 << 20;
pub(super) const SNAPSHOTS_MAX: u32 = 65536;
pub(super) const SNAPSHOT_TABLE_BYTES_MAX: usize = 16 << 20;
pub(super) const SNAPSHOT_EXTRA_MAX: u32 = 1024;
pub(super) const BITMAPS_MAX: u32 = 65535;
pub(super) const BITMAP_DIRECTORY_BYTES_MAX: u64 = 1024 * BITMAPS_MAX as u64;
/// Of one bitmap; those of disks of a pebibyte are not longer.
pub(super) const BITMAP_TABLE_BYTES_MAX: u64 = 32 << 20;
pub(super) const BACKING_NAME_MAX: u32 = 1023;
