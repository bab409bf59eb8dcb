//! The structures of PVH (xen/include/public/arch-x86/hvm/start_info.h).

use crate::layout;
use crate::plan::Boot;

const MAGIC: u32 = 0x336e_c578;
const START_INFO_SIZE: u64 = 56;

/// Builds `hvm_start_info`, version 1, followed by its module list.
pub(crate) fn start_info(boot: &Boot<'_>) -> Vec<u8> {
    let modules = boot.initrd.is_some() as u32;
    let mut out = Vec::new();
    let module_list = if modules > 0 { layout::PVH_START_INFO + START_INFO_SIZE } else { 0 };
    for word in [MAGIC, 1, 0, modules] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for address in [module_list, layout::COMMAND_LINE, boot.rsdp, layout::PVH_MEMORY_MAP] {
        out.extend_from_slice(&address.to_le_bytes());
    }
    for word in [boot.memory_map.len() as u32, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    if let Some(initrd) = &boot.initrd {
        for field in [initrd.start, initrd.end - initrd.start, 0, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
    out
}

/// Builds the array of `hvm_memmap_table_entry`, whose types are those of E820.
pub(crate) fn memory_map(boot: &Boot<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in boot.memory_map {
        out.extend_from_slice(&entry.range.start.to_le_bytes());
        out.extend_from_slice(&entry.range.len.to_le_bytes());
        out.extend_from_slice(&(entry.kind as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
    out
}
