//! The keyboard controller (i8042), with a keyboard in a machine that has a display.
//!
//! `I8042Model` is the register model of the controller: two PS/2 ports, and the lines that it drives beside:
//! reset and A20. `KeyboardModel` is the keyboard, which sends scan code set 2 that the controller translates to
//! set 1. [`I8042`] is the wiring, and types what the outside asks for.

mod device;
mod keyboard;
mod keys;
mod model;
pub mod spec;
mod translation;

pub use device::I8042;
pub use keyboard::{KeyboardModel, KeyboardSaved};
pub use keys::{Key, KeyError, Stroke};
pub use model::{I8042Effect, I8042Model, I8042Saved};
