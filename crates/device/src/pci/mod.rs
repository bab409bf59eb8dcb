//! PCI functions: configuration space, base address registers, capabilities, MSI-X.
//!
//! A function implements [`PciFunction`]; it keeps its registers in a [`ConfigSpace`] and, if it sends
//! message-signalled interrupts, an [`Msix`] table. The root complex (in `platform`) routes
//! configuration cycles by [`Bdf`] and memory cycles by the functions' base address registers.

mod config;
mod msix;

pub use config::{Bar, BarKind, ConfigSaved, ConfigSpace, Identity, ROM_BAR, reg};
pub use msix::{Msix, MsixSaved};

use std::fmt;

/// Bus, device and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Bdf {
    /// A function on bus 0.
    pub const fn on_bus_0(device: u8, function: u8) -> Bdf {
        Bdf { bus: 0, device, function }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// One PCI function. Methods take `&self`: the implementation holds its own locks, and never holds one
/// while it raises an interrupt.
pub trait PciFunction: Send + Sync {
    /// Reads a doubleword of configuration space; `register` is its index (byte offset / 4, 0 to 1023).
    fn config_read(&self, register: u16) -> u32;

    /// Writes 1, 2 or 4 bytes of configuration space at byte offset `offset`, inside one doubleword.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// The base address registers as the guest has set them now.
    fn bars(&self) -> Vec<Bar>;

    /// Reads from BAR `index` at `offset`; `data` (1 to 8 bytes) comes filled with ones.
    fn bar_read(&self, index: usize, offset: u64, data: &mut [u8]);

    /// Writes to BAR `index` at `offset` (1 to 8 bytes).
    fn bar_write(&self, index: usize, offset: u64, data: &[u8]);
}
