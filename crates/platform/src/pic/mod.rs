//! The two cascaded interrupt controllers (8259A) with their edge/level registers.
//!
//! `PicPair` is the register model, [`Pic`] the wiring: interrupt lines in, INTR out.

mod chip;
mod device;
mod model;
pub mod spec;

pub use chip::ChipSaved;
pub use device::Pic;
pub use model::{PicPair, PicSaved};
