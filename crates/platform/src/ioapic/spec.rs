//! Registers of the I/O APIC (Intel 82093AA data sheet 290566; EOI register as in the ICH data sheets).

/// Where the registers are.
pub const BASE: u64 = 0xfec0_0000;
/// Size of the window.
pub const LEN: u64 = 0x1000;
/// Inputs.
pub const PINS: usize = 24;

/// Index of the register behind [`WINDOW`].
pub const SELECT: u64 = 0x00;
/// The register that [`SELECT`] names.
pub const WINDOW: u64 = 0x10;
/// End of interrupt: takes a vector.
pub const EOI: u64 = 0x40;

/// Index of the identification register.
pub const REG_ID: u8 = 0x00;
/// Index of the version register.
pub const REG_VERSION: u8 = 0x01;
/// Index of the arbitration register.
pub const REG_ARBITRATION: u8 = 0x02;
/// Index of the first redirection entry's low half; each entry has two.
pub const REG_REDIRECTION: u8 = 0x10;
/// Version 0x20 (has EOI), 24 entries.
pub const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Redirection entry: the vector.
pub const ENTRY_VECTOR: u64 = 0xff;
/// Redirection entry: the lowest bit of the three-bit delivery mode.
pub const ENTRY_DELIVERY_SHIFT: u32 = 8;
/// Redirection entry: the destination is logical.
pub const ENTRY_LOGICAL: u64 = 1 << 11;
/// Redirection entry: delivery is pending (read-only, always clear: delivery takes no time).
pub const ENTRY_PENDING: u64 = 1 << 12;
/// Redirection entry: a level-triggered interrupt was accepted and not yet ended (read-only).
pub const ENTRY_REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level-triggered.
pub const ENTRY_LEVEL: u64 = 1 << 15;
/// Redirection entry: masked.
pub const ENTRY_MASKED: u64 = 1 << 16;
/// Redirection entry: the lowest bit of the destination.
pub const ENTRY_DESTINATION_SHIFT: u32 = 56;
/// The bits of an entry that can be written.
pub const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Delivery mode: to the processors named.
pub const DELIVERY_FIXED: u64 = 0;
/// Delivery mode: to the one of lowest priority among those named.
pub const DELIVERY_LOWEST: u64 = 1;
/// Delivery mode: the vector comes from the 8259A.
pub const DELIVERY_EXTINT: u64 = 7;

/// Messages go to this address with the destination at bit 12 (Intel SDM vol. 3A, §11.11.1).
pub const MSI_ADDRESS: u64 = 0xfee0_0000;
/// Lowest bit of the destination in a message's address.
pub const MSI_DESTINATION_SHIFT: u32 = 12;
/// Bit of a message's address: the destination is logical.
pub const MSI_LOGICAL_SHIFT: u32 = 2;
