//! Registers of the host bus adapter (Serial ATA AHCI 1.3.1, §3) and commands of ATA (ACS-3, §7).
#![allow(missing_docs)]

/// Most ports.
pub const PORTS_MAX: usize = 6;
/// Command slots of a port.
pub const SLOTS: u32 = 32;
/// The base address register of the registers.
pub const BAR: usize = 5;
pub const BAR_SIZE: u64 = 0x1000;
pub const PORT_FIRST: u64 = 0x100;
pub const PORT_SIZE: u64 = 0x80;

/// Generic host control.
pub const CAP: u64 = 0x00;
pub const GHC: u64 = 0x04;
pub const IS: u64 = 0x08;
pub const PI: u64 = 0x0c;
pub const VS: u64 = 0x10;
/// 64-bit addresses, AHCI only, first generation, 32 slots; the number of ports is added.
pub const CAP_VALUE: u32 = 1 << 31 | 1 << 24 | 1 << 18 | 1 << 20 | (SLOTS - 1) << 8;
pub const VERSION: u32 = 0x0001_0300;
pub const GHC_RESET: u32 = 1;
pub const GHC_INTERRUPTS: u32 = 1 << 1;
pub const GHC_AHCI: u32 = 1 << 31;

/// A port's registers.
pub const P_CLB: u64 = 0x00;
pub const P_CLBU: u64 = 0x04;
pub const P_FB: u64 = 0x08;
pub const P_FBU: u64 = 0x0c;
pub const P_IS: u64 = 0x10;
pub const P_IE: u64 = 0x14;
pub const P_CMD: u64 = 0x18;
pub const P_TFD: u64 = 0x20;
pub const P_SIG: u64 = 0x24;
pub const P_SSTS: u64 = 0x28;
pub const P_SCTL: u64 = 0x2c;
pub const P_SERR: u64 = 0x30;
pub const P_CI: u64 = 0x38;

pub const CMD_START: u32 = 1;
pub const CMD_SPIN_UP: u32 = 1 << 1;
pub const CMD_POWER: u32 = 1 << 2;
pub const CMD_OVERRIDE: u32 = 1 << 3;
pub const CMD_FIS: u32 = 1 << 4;
pub const CMD_FIS_RUNS: u32 = 1 << 14;
pub const CMD_RUNS: u32 = 1 << 15;
pub const CMD_ATAPI: u32 = 1 << 24;
/// What software may write.
pub const CMD_WRITABLE: u32 = CMD_START | CMD_FIS | CMD_ATAPI | 0xf000_0000 | 3 << 25;

/// Interrupts of a port: a register FIS came, a PIO set-up FIS came, the task file has an error.
pub const INT_REGISTER: u32 = 1;
pub const INT_PIO: u32 = 1 << 1;
pub const INT_ERROR: u32 = 1 << 30;
pub const INT_MASK: u32 = 0xfdc0_00ff;

/// A device is there and talks, at the first generation's speed, active.
pub const SSTS_PRESENT: u32 = 0x113;
pub const SIGNATURE_DISK: u32 = 0x0000_0101;
pub const SIGNATURE_ATAPI: u32 = 0xeb14_0101;

/// Frame information structures, and where received ones lie.
pub const FIS_FROM_HOST: u8 = 0x27;
pub const FIS_TO_HOST: u8 = 0x34;
pub const FIS_PIO: u8 = 0x5f;
pub const RECEIVED_PIO: u64 = 0x20;
pub const RECEIVED_REGISTER: u64 = 0x40;

/// ATA status and error.
pub const STATUS_ERROR: u8 = 1;
pub const STATUS_READY: u8 = 0x50;
pub const STATUS_BUSY: u8 = 0x80;
pub const ERROR_ABORTED: u8 = 4;
pub const ERROR_UNREADABLE: u8 = 0x40;
pub const ERROR_NO_SUCH_BLOCK: u8 = 0x10;

pub const IDENTIFY: u8 = 0xec;
pub const IDENTIFY_PACKET: u8 = 0xa1;
pub const PACKET: u8 = 0xa0;
pub const DEVICE_RESET: u8 = 0x08;
pub const SET_FEATURES: u8 = 0xef;
/// Subcommands of SET FEATURES.
pub const FEATURE_ENABLE_WRITE_CACHE: u8 = 0x02;
pub const FEATURE_TRANSFER_MODE: u8 = 0x03;
pub const FLUSH: u8 = 0xe7;
pub const FLUSH_EXT: u8 = 0xea;
