//! The programmable interval timer (8254) and the PC's port 0x61.
//!
//! `Channel` is one counter and `PitModel` the three with their ports; nothing in them ticks: every
//! access says what time it is, and values are computed from that. [`Pit`] is the wiring to clock,
//! timer and interrupt line.

mod channel;
mod device;
mod model;
pub mod spec;

pub use channel::ChannelSaved;
pub use device::Pit;
pub use model::{PitModel, PitSaved};
