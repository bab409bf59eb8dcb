//! The device contract: buses, PCI functions, interrupt lines and messages, save and restore.
//!
//! A device is a pure register model in one file (no lock, thread or bus), wired up in another. It
//! meets the machine only through what is defined here:
//!
//! - [`BusDevice`]: answers port I/O or memory-mapped I/O; placed on a [`Bus`] at a range of addresses;
//! - [`pci::PciFunction`]: a PCI function with its configuration space and base address registers;
//! - [`IrqLine`] and [`MsiSink`]: how a device asks for an interrupt;
//! - [`state`]: how a device is saved and restored;
//! - [`limit`]: how a device keeps a rate that somebody has set.
//!
//! **What a guest can do wrong is device behaviour, never a Rust error**: a register that does not exist
//! reads as the bus floats (all ones), a write to it is ignored, an access of odd size does what the
//! datasheet says or nothing. No implementation may panic, block for long or grow without bound on
//! anything a guest sends.
//!
//! A device never sees a CPU engine.

mod bus;
mod irq;
pub mod limit;
pub mod pci;
pub mod state;

pub use bus::{Bus, BusDevice, Overlap};
pub use irq::{IrqLine, IrqSink, Msi, MsiRoute, MsiSink};
