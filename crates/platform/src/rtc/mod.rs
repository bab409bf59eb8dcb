//! The real-time clock and its battery-backed memory (MC146818 with 128 bytes).
//!
//! `Rtc` is the register model: every access tells it what time it is. [`RtcDevice`] is the wiring to
//! the machine's clock, timers and interrupt line.

mod calendar;
mod device;
mod model;
pub mod spec;

pub use device::RtcDevice;
pub use model::{Rtc, RtcSaved, TimeFields};
