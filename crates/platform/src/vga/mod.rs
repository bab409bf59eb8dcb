//! The display adapter: a VGA with the Bochs display interface, which firmware, boot loaders and systems have
//! drivers for ("standard VGA").
//!
//! ```text
//! ports 3B0..3DF, 1CE..1D1 ─┐
//! BAR 2 ────────────────────┴─> VgaModel ──> Picture (what a monitor would show)
//! A0000..BFFFF ──> VgaModel::window_read/write ──> video memory <── BAR 0 (as if it were RAM)
//! ```
//!
//! Nothing is drawn while nobody looks: [`Vga::picture`] makes the picture from registers and memory.

mod device;
mod edid;
mod model;
mod picture;
pub mod spec;
mod text;
mod window;

pub use device::{Vga, VgaSaved};
pub use model::{VgaModel, VgaRegisters};
pub use picture::Picture;
