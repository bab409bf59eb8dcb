//! A NOR flash chip with the Intel command set, in which UEFI firmware keeps its variables.
//!
//! [`FlashModel`] is the chip, [`Flash`] the chip on the memory bus.

mod device;
mod model;
pub mod spec;

pub use device::{Flash, Keep};
pub use model::{FlashModel, FlashSaved};
