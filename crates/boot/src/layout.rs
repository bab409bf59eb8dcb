//! Where things lie in the guest's first megabyte, and the memory map it is told.
//!
//! ```text
//! 0x00000  unused
//! 0x01000  descriptor table
//! 0x06000  PVH start info, module list and memory map
//! 0x07000  zero page (struct boot_params)
//! 0x08000  setup_data
//! 0x09000  page tables (six pages)
//! 0x10000  command line (at most 64 KiB)
//! 0x20000  free
//! 0x9fc00  reserved, where a PC has its extended BIOS data area; the generation ID
//! 0xa0000  hole, where a PC has its video memory
//! 0xe0000  ACPI tables
//! 0xf0000  SMBIOS tables
//! ```
//!
//! What lies below 0x9fc00 is ordinary memory to the guest: the kernel is done with it before it
//! allocates there.

use crate::AddressRange;
use memory::{HIGH_RAM_START, Ram};

/// The descriptor table that the first processor starts with.
pub const GDT: u64 = 0x1000;
/// `hvm_start_info`, followed by the module list.
pub const PVH_START_INFO: u64 = 0x6000;
/// The memory map of PVH.
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// The list of `struct setup_data`.
pub const SETUP_DATA: u64 = 0x8000;
/// Page tables that map the first 4 GiB to themselves: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x1_0000;
/// Length of the area for the command line, with its NUL.
pub const COMMAND_LINE_SIZE: u64 = 0x1_0000;
/// Usable memory in the first megabyte ends here.
pub const LOW_USABLE_END: u64 = 0x9_fc00;
/// Where a PC's video memory begins.
pub const VIDEO_HOLE: u64 = 0xa_0000;
/// The VM generation ID, in reserved memory.
pub const GENERATION_ID: u64 = 0x9_fc40;
/// The area for ACPI tables; the RSDP stands at its start, where operating systems look for it.
pub const ACPI: AddressRange = AddressRange { start: 0xe_0000, len: 0x1_0000 };
/// The area for SMBIOS tables; the entry point stands at its start.
pub const SMBIOS: AddressRange = AddressRange { start: 0xf_0000, len: 0x1_0000 };
/// Memory from here on is for the kernel.
pub const KERNEL_MIN: u64 = 0x10_0000;

/// What a range of the memory map is for (ACPI 6.5, table 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Memory that the system may use.
    Usable = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// The addresses.
    pub range: AddressRange,
    /// What they are for.
    pub kind: MemoryKind,
}

/// Builds the memory map: RAM without the holes of the first megabyte, and the addresses of PCI
/// configuration space, which Linux wants to see reserved. Ascending, without overlaps.
pub fn memory_map(ram: &Ram, ecam: AddressRange) -> Vec<MemoryMapEntry> {
    let entry =
        |start: u64, end: u64, kind| MemoryMapEntry { range: AddressRange { start, len: end - start }, kind };
    let mut map = vec![
        entry(0, LOW_USABLE_END, MemoryKind::Usable),
        entry(LOW_USABLE_END, VIDEO_HOLE, MemoryKind::Reserved),
        entry(ACPI.start, SMBIOS.end(), MemoryKind::Reserved),
        entry(ecam.start, ecam.end(), MemoryKind::Reserved),
    ];
    for range in ram.ranges() {
        let start = if range.start == 0 { KERNEL_MIN } else { range.start };
        if range.end() > start {
            map.push(entry(start, range.end(), MemoryKind::Usable));
        }
    }
    map.sort_by_key(|entry| entry.range.start);
    map
}

/// Where RAM below 4 GiB ends.
pub(crate) fn low_ram_end(ram: &Ram) -> u64 {
    ram.ranges().filter(|range| range.start < HIGH_RAM_START).map(|range| range.end()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_covers_all_ram_once_and_leaves_the_holes_out() {
        let ecam = AddressRange { start: 0xe000_0000, len: 0x1000_0000 };
        for size in [2 << 20, 512 << 20, memory::LOW_RAM_END, memory::LOW_RAM_END + (1 << 30)] {
            let ram = Ram::new(size).unwrap();
            let map = memory_map(&ram, ecam);
            assert!(map.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start), "{map:x?}");
            let usable: u64 = map.iter().filter(|e| e.kind == MemoryKind::Usable).map(|e| e.range.len).sum();
            assert_eq!(usable, size - (KERNEL_MIN - LOW_USABLE_END));
            assert!(map.iter().any(|e| e.range == ecam && e.kind == MemoryKind::Reserved));
        }
    }
}
