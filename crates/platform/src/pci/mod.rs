//! The PCI root: configuration cycles, memory and I/O windows, placement of base address registers.
//!
//! ```text
//! ports 0xCF8..0xCFF ─┐
//! hole: PCIEXBAR ─────┴─> PciRoot ──by bus, device, function──> PciFunction (configuration)
//! hole, MMIO64, I/O ────> PciRoot ──by enabled BAR────────────> PciFunction (BARs)
//! ```
//!
//! Functions sit on bus 0 beside the [`HostBridge`]; they interrupt by MSI-X, or by a line from
//! [`IrqRouter::pci_line`](crate::IrqRouter::pci_line).

mod fronts;
mod host_bridge;
pub mod isa_bridge;
mod map;
mod root;
pub mod spec;

pub use host_bridge::HostBridge;
pub use isa_bridge::IsaBridge;
pub use root::{PciError, PciRoot, PciRootSaved};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub start: u64,
    /// Length in bytes; 0 for a window that does not exist.
    pub len: u64,
}

impl Window {
    /// The first address after the window.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Where base address registers can be: what the host bridge passes on. ACPI's `_CRS` of the root bus
/// says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// I/O ports.
    pub io: Window,
    /// Memory below 4 GiB.
    pub mmio32: Window,
    /// Memory above 4 GiB and above RAM.
    pub mmio64: Window,
}

impl Windows {
    /// The standard windows of a machine whose RAM ends at `ram_end`, with `len` bytes above 4 GiB. The
    /// upper window begins at a multiple of [`spec::MMIO64_ALIGN`]. The caller sees to it that its end
    /// is within the physical addresses of the CPU model.
    ///
    /// # Panics
    /// When the sum is no address.
    pub fn above_ram(ram_end: u64, len: u64) -> Windows {
        let start = ram_end.max(1 << 32).next_multiple_of(spec::MMIO64_ALIGN);
        assert!(start.checked_add(len).is_some(), "the window above RAM ends beyond all addresses");
        Windows { io: spec::IO_WINDOW, mmio32: spec::MMIO32_WINDOW, mmio64: Window { start, len } }
    }
}
