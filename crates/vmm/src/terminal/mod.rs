//! The terminal: raw mode, the escape key, and the two directions of a serial line.
//!
//! ```text
//! keyboard ─> stdin ─> input thread ─ escape key? ─> CharSink (serial port or console)
//! screen <─ stdout <─ output thread <─ buffer <──── OutputWriter (what the guest writes)
//! ```

mod escape;
mod input;
mod output;
mod raw;
mod socket;

pub use escape::Command;
pub use input::{CharSink, Input, Wake};
pub use output::{Output, OutputWriter};
pub use raw::{RawMode, restore};
pub use socket::{SocketLine, SocketWriter};
