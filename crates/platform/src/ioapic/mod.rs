//! The I/O interrupt controller (82093AA, with the EOI register of later ones).
//!
//! `IoApicModel` is the register model, [`IoApic`] the wiring: interrupt lines in, messages out.

mod device;
mod model;
pub mod spec;

pub use device::IoApic;
pub use model::{IoApicModel, IoApicSaved};
