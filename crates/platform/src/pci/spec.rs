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

/// Where the memory-mapped configuration space is (ACPI MCFG) when no firmware has moved it.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// Buses in it, from 0 on, as systems are told.
pub const ECAM_BUSES: u8 = 16;
/// Bytes of memory-mapped configuration space per bus.
pub const ECAM_BUS_LEN: u64 = 1 << 20;
/// Its length, as systems are told.
pub const ECAM_LEN: u64 = ECAM_BUSES as u64 * ECAM_BUS_LEN;
/// The addresses that the chipset decodes as configuration space: 256 buses.
pub const ECAM_DECODED_LEN: u64 = 1 << 28;

/// PCIEXBAR of the host bridge: where configuration space is (Intel 3 Series datasheet, §5.1.18).
pub const REG_PCIEXBAR: u16 = 0x60;
/// In PCIEXBAR: configuration space is decoded.
pub const PCIEXBAR_ENABLE: u64 = 1;
/// The address bits of PCIEXBAR, for a length of 256 MiB.
pub const PCIEXBAR_ADDRESS: u64 = 0xf_f000_0000;

/// Everything between RAM and the I/O APIC: configuration space and base address registers.
pub const HOLE32: Window = Window { start: memory::LOW_RAM_END, len: 0xfec0_0000 - memory::LOW_RAM_END };
/// Memory window below 4 GiB.
pub const MMIO32_WINDOW: Window = Window { start: 0xc000_0000, len: 0xfec0_0000 - 0xc000_0000 };
/// I/O window.
pub const IO_WINDOW: Window = Window { start: 0x6000, len: 0xa000 };
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
