//! The keyboard controller (i8042), in a machine that may have no keyboard.
//!
//! `I8042Model` is the register model: two PS/2 ports that a device can be plugged into ([`Ps2Device`]),
//! and the lines that the controller drives beside: reset and A20. [`I8042`] is the wiring.

mod device;
mod model;
pub mod spec;

pub use device::{I8042, Ps2Device, Ps2Port};
pub use model::{I8042Effect, I8042Model, I8042Saved};
