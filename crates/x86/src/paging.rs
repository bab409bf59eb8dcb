//! Bits of page-table entries (SDM vol. 3A, §4.5).
#![allow(missing_docs)]

pub const PRESENT: u64 = 1 << 0;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
/// In a directory entry: it maps a large page.
pub const PAGE_SIZE: u64 = 1 << 7;
pub const GLOBAL: u64 = 1 << 8;
pub const NO_EXECUTE: u64 = 1 << 63;
/// Physical address bits of an entry, before the width of the processor is applied.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Whether a 48-bit linear address is canonical.
#[inline]
pub fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}
