//! Registers of the 8259A (Intel data sheet 231468) and their place in a PC.

/// Command port of the first controller; its data port follows.
pub const PORT_MASTER: u16 = 0x20;
/// Command port of the second controller; its data port follows.
pub const PORT_SLAVE: u16 = 0xa0;
/// Edge/level registers of the first and the second controller.
pub const PORT_ELCR: u16 = 0x4d0;
/// The input of the first controller that the second one leads to.
pub const CASCADE: u8 = 2;
/// Inputs of both.
pub const INPUTS: u32 = 16;
/// Lines that may be level-triggered: not timer, keyboard, cascade, RTC, FPU.
pub const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// In a write to the command port: this is ICW1.
pub const ICW1_INIT: u8 = 1 << 4;
/// ICW4 follows.
pub const ICW1_IC4: u8 = 1 << 0;
/// There is one controller only: no ICW3.
pub const ICW1_SINGLE: u8 = 1 << 1;
/// Automatic end of interrupt.
pub const ICW4_AEOI: u8 = 1 << 1;
/// Special fully nested mode.
pub const ICW4_SFNM: u8 = 1 << 4;
/// In a write to the command port that is not ICW1: this is OCW3.
pub const OCW3: u8 = 1 << 3;
/// Read a register, which is the service register with [`OCW3_ISR`].
pub const OCW3_READ: u8 = 1 << 1;
/// See [`OCW3_READ`].
pub const OCW3_ISR: u8 = 1 << 0;
/// The next read is a poll.
pub const OCW3_POLL: u8 = 1 << 2;
/// Set the special mask mode as [`OCW3_SMM`] says.
pub const OCW3_ESMM: u8 = 1 << 6;
/// See [`OCW3_ESMM`].
pub const OCW3_SMM: u8 = 1 << 5;
