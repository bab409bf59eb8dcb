//! Bits of local APIC registers (SDM vol. 3A, chapter 11) that only this model needs.

/// Spurious-interrupt vector register: the APIC is enabled by software (§11.9).
pub(super) const SVR_ENABLE: u32 = 1 << 8;
/// What can be written to the spurious-interrupt vector register: vector, enable, focus check. There is
/// no suppression of end-of-interrupt broadcasts (bit 12).
pub(super) const SVR_WRITABLE: u32 = 0x3ff;

/// A local vector is masked (figure 11-8).
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Trigger mode of a local vector or a message: level.
pub(super) const LEVEL_TRIGGERED: u32 = 1 << 15;
/// Bits of a local vector that the processor sets: delivery status, remote IRR.
pub(super) const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
/// Timer modes (table 11-2).
pub(super) const TIMER_MODE: u32 = 3 << 17;
pub(super) const TIMER_PERIODIC: u32 = 1 << 17;
pub(super) const TIMER_TSC_DEADLINE: u32 = 2 << 17;

/// Interrupt command: logical destination (figure 11-12).
pub(super) const ICR_LOGICAL: u32 = 1 << 11;
/// Interrupt command: the message is still being sent. Never seen set: sending takes no time.
pub(super) const ICR_BUSY: u32 = 1 << 12;
/// Interrupt command: level assert, for INIT.
pub(super) const ICR_ASSERT: u32 = 1 << 14;
/// Interrupt command: destination shorthand.
pub(super) const ICR_SHORTHAND: u32 = 3 << 18;
/// Reserved bits of the x2APIC interrupt command (figure 11-28).
pub(super) const ICR_RESERVED: u32 = 0xfff << 20 | 3 << 16 | 1 << 13;

/// Error status (figure 11-9): a message with a vector below 16 was to be sent.
pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// Error status: a message or local vector below 16 was received.
pub(super) const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Error status: an access to a register that does not exist.
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Version 0x14 (integrated APIC), seven local vector entries (§11.4.8).
pub(super) const VERSION: u32 = 5 << 16 | 0x14;

/// Nanoseconds per tick of the timer's bus clock before division: 1 GHz.
pub(super) const NANOS_PER_TICK: u64 = 1;
/// The shortest period that a periodic timer is given, so that a guest cannot keep a host thread busy
/// with nothing else.
pub(super) const PERIOD_MIN_NS: u64 = 100_000;

/// The local vector registers with their writable bits.
pub(super) const LVTS: [(u32, u32); 6] = {
    use x86::apic::reg::*;
    const MASKED_WITH_MODE: u32 = LVT_MASKED | 0x7ff;
    const PIN: u32 = MASKED_WITH_MODE | LEVEL_TRIGGERED | 1 << 13;
    [
        (LVT_TIMER, LVT_MASKED | TIMER_MODE | 0xff),
        (LVT_THERMAL, MASKED_WITH_MODE),
        (LVT_PERF, MASKED_WITH_MODE),
        (LVT_LINT0, PIN),
        (LVT_LINT1, PIN),
        (LVT_ERROR, LVT_MASKED | 0xff),
    ]
};
