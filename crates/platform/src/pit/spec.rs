//! Registers of the 8254 (Intel data sheet 231164) and of port 0x61.

/// Input clock in Hz.
pub const FREQUENCY_HZ: u64 = 1_193_182;
/// Counter 0; the others follow.
pub const PORT_COUNTER_0: u16 = 0x40;
/// Control word.
pub const PORT_CONTROL: u16 = 0x43;
/// System control port B: gate and output of counter 2, speaker.
pub const PORT_SYSTEM: u16 = 0x61;
/// ISA interrupt of counter 0.
pub const IRQ: u32 = 0;

/// In the control word's counter field: this is a read-back command.
pub const SELECT_READ_BACK: u8 = 3;
/// Read-back: do not latch the count.
pub const READ_BACK_NO_COUNT: u8 = 1 << 5;
/// Read-back: do not latch the status.
pub const READ_BACK_NO_STATUS: u8 = 1 << 4;
/// Status byte: level of OUT.
pub const STATUS_OUT: u8 = 1 << 7;
/// Status byte: the count written last is not yet counting.
pub const STATUS_NULL_COUNT: u8 = 1 << 6;

/// Port 0x61: gate of counter 2.
pub const SYSTEM_GATE_2: u8 = 1 << 0;
/// Port 0x61: the bits that read back as written (gate, speaker, two error enables).
pub const SYSTEM_WRITABLE: u8 = 0x0f;
/// Port 0x61: toggles with every memory refresh.
pub const SYSTEM_REFRESH: u8 = 1 << 4;
/// Port 0x61: level of counter 2's OUT.
pub const SYSTEM_OUT_2: u8 = 1 << 5;
/// Input clocks per memory refresh (15.085 µs).
pub const REFRESH_PERIOD: u64 = 18;
