//! Commands of the chip: Intel's basic and extended command sets (Intel StrataFlash memory, J3 datasheet,
//! §9), as far as firmware for virtual machines uses them.

/// What one erase makes blank, in bytes: the block size that such firmware is built for.
pub const BLOCK_SIZE: usize = 4096;
/// The most that one buffered write programs.
pub const BUFFER_SIZE: usize = 4096;
/// A blank byte.
pub const BLANK: u8 = 0xff;

/// Reads show the contents.
pub const READ_ARRAY: u8 = 0xff;
/// Reads show the status register.
pub const READ_STATUS: u8 = 0x70;
/// Clears the status register.
pub const CLEAR_STATUS: u8 = 0x50;
/// The next byte is programmed where it is written.
pub const PROGRAM: u8 = 0x10;
/// The same by another number.
pub const PROGRAM_ALTERNATE: u8 = 0x40;
/// Erases a block, once confirmed.
pub const ERASE_BLOCK: u8 = 0x20;
/// Fills the buffer: a count less one, then bytes, then the confirmation.
pub const BUFFERED_PROGRAM: u8 = 0xe8;
/// Confirms.
pub const CONFIRM: u8 = 0xd0;

/// Status: ready.
pub const STATUS_READY: u8 = 1 << 7;
/// Status: an erase failed, or, with [`STATUS_PROGRAM_ERROR`], a command sequence was wrong.
pub const STATUS_ERASE_ERROR: u8 = 1 << 5;
/// Status: programming failed.
pub const STATUS_PROGRAM_ERROR: u8 = 1 << 4;
