//! 16550A serial ports (COM1 to COM4).
//!
//! `Uart` is the register model, [`SerialPort`] its wiring: an output stream, an input side for
//! whoever feeds the guest, and the interrupt line.

mod device;
mod model;
pub mod spec;

pub use device::SerialPort;
pub use model::{SerialSaved, Uart, UartEffect};
