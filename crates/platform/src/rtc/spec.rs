//! Registers of the MC146818 (Motorola MC146818A data sheet) and the PC's use of its memory.

/// Index port (bit 7 is the PC's NMI mask).
pub const PORT_INDEX: u16 = 0x70;
/// Data port.
pub const PORT_DATA: u16 = 0x71;
/// ISA interrupt.
pub const IRQ: u32 = 8;
/// Bytes of registers and memory.
pub const NVRAM_SIZE: usize = 128;

/// Seconds; the alarm register of each of seconds, minutes and hours follows it.
pub const REG_SECONDS: u8 = 0x00;
/// Seconds of the alarm.
pub const REG_ALARM_SECONDS: u8 = 0x01;
/// Minutes.
pub const REG_MINUTES: u8 = 0x02;
/// Minutes of the alarm.
pub const REG_ALARM_MINUTES: u8 = 0x03;
/// Hours; bit 7 is PM in 12-hour mode.
pub const REG_HOURS: u8 = 0x04;
/// Hours of the alarm.
pub const REG_ALARM_HOURS: u8 = 0x05;
/// Day of the week, Sunday is 1.
pub const REG_WEEKDAY: u8 = 0x06;
/// Day of the month.
pub const REG_DAY: u8 = 0x07;
/// Month.
pub const REG_MONTH: u8 = 0x08;
/// Year in the century.
pub const REG_YEAR: u8 = 0x09;
/// Update-in-progress, divider, periodic rate.
pub const REG_A: u8 = 0x0a;
/// Interrupt enables and formats.
pub const REG_B: u8 = 0x0b;
/// Interrupt flags; reading clears them.
pub const REG_C: u8 = 0x0c;
/// Valid RAM and time.
pub const REG_D: u8 = 0x0d;
/// Century; the ACPI FADT names this register to the system.
pub const REG_CENTURY: u8 = 0x32;

/// Update in progress.
pub const A_UIP: u8 = 0x80;
/// Divider control.
pub const A_DIVIDER: u8 = 0x70;
/// Both of these divider bits hold the divider chain in reset.
pub const A_DIVIDER_RESET: u8 = 0x60;
/// Periodic rate.
pub const A_RATE: u8 = 0x0f;
/// Register A after power-on: 32768 Hz time base, 1024 Hz rate.
pub const A_DEFAULT: u8 = 0x26;

/// Updates are inhibited while the time is being set.
pub const B_SET: u8 = 0x80;
/// Periodic interrupt enable.
pub const B_PIE: u8 = 0x40;
/// Alarm interrupt enable.
pub const B_AIE: u8 = 0x20;
/// Update-ended interrupt enable.
pub const B_UIE: u8 = 0x10;
/// Binary, not BCD.
pub const B_BINARY: u8 = 0x04;
/// 24-hour, not 12-hour.
pub const B_24_HOURS: u8 = 0x02;

/// Any of the enabled interrupts.
pub const C_IRQF: u8 = 0x80;
/// Periodic.
pub const C_PF: u8 = 0x40;
/// Alarm.
pub const C_AF: u8 = 0x20;
/// Update ended.
pub const C_UF: u8 = 0x10;

/// The battery is good.
pub const D_VALID: u8 = 0x80;

/// PM in an hours register.
pub const HOURS_PM: u8 = 0x80;
/// Alarm registers from this value on match every time.
pub const ALARM_ANY: u8 = 0xc0;

/// How long before an update UIP rises, in nanoseconds (244 µs, data sheet table 6).
pub const UPDATE_WARNING_NS: u64 = 244_000;

/// Kilobytes below 640 KiB, two bytes.
pub const CMOS_BASE_MEMORY: u8 = 0x15;
/// Kilobytes from 1 MiB on, up to 64 MiB, two bytes; the copy found by the BIOS is at 0x30.
pub const CMOS_EXTENDED_MEMORY: u8 = 0x17;
/// Copy of [`CMOS_EXTENDED_MEMORY`].
pub const CMOS_EXTENDED_MEMORY_COPY: u8 = 0x30;
/// Units of 64 KiB from 16 MiB to 4 GiB, two bytes.
pub const CMOS_MEMORY_ABOVE_16M: u8 = 0x34;
/// Units of 64 KiB above 4 GiB, three bytes.
pub const CMOS_MEMORY_ABOVE_4G: u8 = 0x5b;
