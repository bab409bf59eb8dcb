//! Addresses of the PCI root, and numbers of the PCI Local Bus Specification 3.0 and PCI Express.

use super::Window;

/// Configuration address port (mechanism #1); the data ports follow.
pub const PORT_CONFIG_ADDRESS: u16 = 0xcf8;
/// Configuration data ports.
pub const PORT_CONFIG_DATA: u16 = 0xcfc;
/// Configuration address: cycles go to configuration space.
pub const CONFIG_ENABLE: u32 = 1 << 31;
/// The bits of the configuration address that exist.
pub const CONFIG_ADDRESS_MASK: u32 = 0x80ff_fffc;

/// Where the memory-mapped configuration space is (ACPI MCFG).
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Buses in it, from 0 on.
pub const ECAM_BUSES: u8 = 16;
/// Bytes of memory-mapped configuration space per bus.
pub const ECAM_BUS_LEN: u64 = 1 << 20;
/// Its length.
pub const ECAM_LEN: u64 = ECAM_BUSES as u64 * ECAM_BUS_LEN;

/// Memory window below 4 GiB: from where RAM ends at the latest up to ECAM.
pub const MMIO32_WINDOW: Window = Window { start: memory::LOW_RAM_END, len: ECAM_BASE - memory::LOW_RAM_END };
/// I/O window.
pub const IO_WINDOW: Window = Window { start: 0xc000, len: 0x4000 };
/// Alignment of the memory window above RAM.
pub const MMIO64_ALIGN: u64 = 1 << 30;
/// The smallest distance of memory BARs as placed at the start: pages are not shared.
pub const BAR_ALIGN: u64 = 0x1000;

/// Devices on a bus.
pub const DEVICES: u8 = 32;
/// Functions of a device.
pub const FUNCTIONS: u8 = 8;
/// In the header type: the device has several functions.
pub const HEADER_MULTI_FUNCTION: u8 = 1 << 7;
