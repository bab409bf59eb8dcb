//! The structures of the Linux boot protocol: zero page and setup data.

use crate::image::bzimage::{BOOT_FLAG, LOADED_HIGH, MAGIC, SetupHeader, field};
use crate::layout;
use crate::plan::Boot;

/// Offsets in the zero page that are not in the setup header (Documentation/arch/x86/zero-page.rst).
mod offset {
    pub(super) const ACPI_RSDP_ADDR: u64 = 0x070;
    pub(super) const E820_ENTRIES: u64 = 0x1e8;
    pub(super) const E820_TABLE: u64 = 0x2d0;
}
/// Entries that the zero page has room for.
const E820_MAX: usize = 128;
/// Type of loader: one without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// Video mode "normal".
const VIDEO_NORMAL: u16 = 0xffff;
/// Entropy for the kernel's random number generator (SETUP_RNG_SEED).
const SETUP_RNG_SEED: u32 = 9;

/// Builds `struct boot_params`. The setup header is the bzImage's own, or a minimal one for an ELF file.
pub(crate) fn zero_page(header: Option<&SetupHeader>, boot: &Boot<'_>) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |at: u64, value: &[u8]| page[at as usize..][..value.len()].copy_from_slice(value);
    match header {
        Some(header) => put(field::SETUP_SECTS, &header.raw),
        None => {
            put(field::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
            put(field::HEADER, &MAGIC.to_le_bytes());
            put(field::VERSION, &0x20c_u16.to_le_bytes());
            put(field::KERNEL_ALIGNMENT, &0x100_0000_u32.to_le_bytes());
        }
    }
    let loadflags = header.map_or(0, |header| header.raw[(field::LOADFLAGS - field::SETUP_SECTS) as usize]);
    // CAN_USE_HEAP (bit 7) concerns real-mode code, which does not run.
    put(field::LOADFLAGS, &[loadflags & 0x7f | LOADED_HIGH]);
    put(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(field::VID_MODE, &VIDEO_NORMAL.to_le_bytes());
    put(field::CMD_LINE_PTR, &(layout::COMMAND_LINE as u32).to_le_bytes());
    put(field::CMDLINE_SIZE, &(boot.command_line_len as u32).to_le_bytes());
    put(field::SETUP_DATA, &layout::SETUP_DATA.to_le_bytes());
    if let Some(initrd) = &boot.initrd {
        // Below 4 GiB by the plan.
        put(field::RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
        put(field::RAMDISK_SIZE, &((initrd.end - initrd.start) as u32).to_le_bytes());
    }
    put(offset::ACPI_RSDP_ADDR, &boot.rsdp.to_le_bytes());
    assert!(boot.memory_map.len() <= E820_MAX, "the memory map has an entry per RAM range and hole");
    put(offset::E820_ENTRIES, &[boot.memory_map.len() as u8]);
    for (index, entry) in boot.memory_map.iter().enumerate() {
        let at = offset::E820_TABLE + 20 * index as u64;
        put(at, &entry.range.start.to_le_bytes());
        put(at + 8, &entry.range.len.to_le_bytes());
        put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    page
}

/// Builds the list of `struct setup_data`: one entry, the random seed.
pub(crate) fn setup_data(boot: &Boot<'_>) -> Vec<u8> {
    let mut data = 0u64.to_le_bytes().to_vec();
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&(boot.random_seed.len() as u32).to_le_bytes());
    data.extend_from_slice(&boot.random_seed);
    data
}
