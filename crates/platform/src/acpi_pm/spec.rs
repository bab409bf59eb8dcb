//! Ports and registers of ACPI fixed hardware (ACPI Specification 6.5, §4.8.3). The FADT repeats them.

/// First port of everything here.
pub const PORT_BASE: u16 = 0x600;
/// Number of ports.
pub const PORT_COUNT: u16 = 0x30;
/// PM1a event block: status, enable (two bytes each). FADT `PM1a_EVT_BLK`.
pub const PM1A_EVENT: u16 = 0x600;
/// FADT `PM1_EVT_LEN`.
pub const PM1_EVENT_LEN: u8 = 4;
/// PM1a control block. FADT `PM1a_CNT_BLK`.
pub const PM1A_CONTROL: u16 = 0x604;
/// FADT `PM1_CNT_LEN`.
pub const PM1_CONTROL_LEN: u8 = 2;
/// PM timer. FADT `PM_TMR_BLK`.
pub const PM_TIMER: u16 = 0x608;
/// FADT `PM_TMR_LEN`.
pub const PM_TIMER_LEN: u8 = 4;
/// The timer has 24 bits: FADT flag `TMR_VAL_EXT` is clear.
pub const PM_TIMER_BITS: u32 = 24;
/// Frequency of the timer in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// General-purpose event block 0: status, enable. FADT `GPE0_BLK`.
pub const GPE0: u16 = 0x620;
/// Length of both halves together. FADT `GPE0_BLK_LEN`.
pub const GPE0_LEN: u8 = 16;
/// Number of general-purpose events.
pub const GPE0_COUNT: u32 = GPE0_LEN as u32 / 2 * 8;
/// The system control interrupt, level-triggered, active high: ISA and global system interrupt.
/// FADT `SCI_INT`.
pub const SCI_IRQ: u32 = 9;
/// The value of SLP_TYP in the `\_S5` package.
pub const SLP_TYP_S5: u8 = 5;

/// Timer carry: the highest bit changed.
pub const PM1_TIMER: u16 = 1 << 0;
/// Global lock released by firmware.
pub const PM1_GLOBAL: u16 = 1 << 5;
/// Power button.
pub const PM1_POWER_BUTTON: u16 = 1 << 8;
/// Sleep button.
pub const PM1_SLEEP_BUTTON: u16 = 1 << 9;
/// Real-time clock alarm.
pub const PM1_RTC: u16 = 1 << 10;
/// Woken from sleep (status only).
pub const PM1_WAKE: u16 = 1 << 15;
/// The status bits that exist.
pub const PM1_STATUS_MASK: u16 =
    PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC | PM1_WAKE;
/// The enable bits that exist.
pub const PM1_ENABLE_MASK: u16 = PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC;

/// Control: power management events raise SCI; always set.
pub const CONTROL_SCI_EN: u16 = 1 << 0;
/// Control: bus master request wakes (no effect here, but it reads back).
pub const CONTROL_BM_RLD: u16 = 1 << 1;
/// Control: lowest bit of the sleep type.
pub const CONTROL_SLP_TYP_SHIFT: u32 = 10;
/// Control: the sleep type.
pub const CONTROL_SLP_TYP: u16 = 7 << CONTROL_SLP_TYP_SHIFT;
/// Control: go to sleep (write-only).
pub const CONTROL_SLP_EN: u16 = 1 << 13;
