//! The root's places on the buses.

use super::map::Space;
use super::root::PciRoot;
use super::spec::*;
use crate::reset::ResetControl;
use device::pci::Bdf;
use device::{Bus, BusDevice, Overlap};
use std::sync::Arc;

impl PciRoot {
    /// Places the configuration ports (with the reset register that lies among them), the hole below 4 GiB
    /// (configuration space and base address registers) and the other windows for base address
    /// registers. A window of length 0 is left out.
    ///
    /// # Errors
    /// When a range is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus, mmio: &Bus, reset: Arc<ResetControl>) -> Result<(), Overlap> {
        let ports = ConfigPorts { root: self.clone(), reset };
        pio.insert(PORT_CONFIG_ADDRESS.into(), 8, Arc::new(ports))?;
        mmio.insert(HOLE32.start, HOLE32.len, Arc::new(Hole { root: self.clone() }))?;
        let windows = self.windows();
        for (bus, space, window) in [(pio, Space::Io, windows.io), (mmio, Space::Memory, windows.mmio64)] {
            if window.len > 0 {
                let front = BarWindow { root: self.clone(), space, start: window.start };
                bus.insert(window.start, window.len, Arc::new(front))?;
            }
        }
        Ok(())
    }
}

/// Configuration mechanism #1 (PCI 3.0, §3.2.2.3.2): an address port of 32 bits and a window of four
/// bytes. A byte access to port 0xCF9 is not an access to the address port but to the reset register.
struct ConfigPorts {
    root: Arc<PciRoot>,
    reset: Arc<ResetControl>,
}

const RESET_OFFSET: u64 = (crate::reset::PORT - PORT_CONFIG_ADDRESS) as u64;
const DATA_OFFSET: u64 = (PORT_CONFIG_DATA - PORT_CONFIG_ADDRESS) as u64;

impl ConfigPorts {
    /// What the data window shows at an offset, if cycles go to configuration space.
    fn target(&self, offset: u64, len: usize) -> Option<(Bdf, u16)> {
        let address = self.root.config_address();
        if address & CONFIG_ENABLE == 0 || offset < DATA_OFFSET || offset - DATA_OFFSET + len as u64 > 4 {
            return None;
        }
        let bdf = Bdf {
            bus: (address >> 16) as u8,
            device: (address >> 11) as u8 & 0x1f,
            function: (address >> 8) as u8 & 7,
        };
        Some((bdf, address as u16 & 0xfc | (offset - DATA_OFFSET) as u16))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.root.config_address().to_le_bytes()),
            (RESET_OFFSET, 1) => data[0] = self.reset.read(),
            (_, len) => {
                if let Some((bdf, register)) = self.target(offset, len) {
                    self.root.config_read(bdf, register, data);
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data.len()) {
            (0, 4) => {
                let address = data.iter().rev().fold(0, |value, byte| value << 8 | *byte as u32);
                self.root.set_config_address(address);
            }
            (RESET_OFFSET, 1) => self.reset.write(data[0]),
            (_, len) => {
                if let Some((bdf, register)) = self.target(offset, len) {
                    self.root.config_write(bdf, register, data);
                }
            }
        }
    }
}

/// The addresses between RAM and the I/O APIC: configuration space where PCIEXBAR says, base address registers
/// elsewhere.
struct Hole {
    root: Arc<PciRoot>,
}

impl Hole {
    /// Offset in configuration space, if the address is decoded as such.
    fn ecam_offset(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.root.ecam_base()?)?;
        (offset < ECAM_DECODED_LEN).then_some(offset)
    }
}

/// The enhanced configuration access mechanism (PCI Express 6.0, §7.2.2): 4 KiB per function.
fn ecam_target(offset: u64, len: usize) -> Option<(Bdf, u16)> {
    let register = (offset & 0xfff) as u16;
    let bdf = Bdf {
        bus: (offset >> 20) as u8,
        device: (offset >> 15) as u8 & 0x1f,
        function: (offset >> 12) as u8 & 7,
    };
    (register as usize + len <= 0x1000).then_some((bdf, register))
}

impl BusDevice for Hole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = HOLE32.start + offset;
        match self.ecam_offset(address) {
            None => self.root.bar_read(Space::Memory, address, data),
            Some(offset) => {
                if let Some((bdf, register)) = ecam_target(offset, data.len()) {
                    self.root.config_read(bdf, register, data);
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = HOLE32.start + offset;
        match self.ecam_offset(address) {
            None => self.root.bar_write(Space::Memory, address, data),
            Some(offset) => {
                if let Some((bdf, register)) = ecam_target(offset, data.len()) {
                    self.root.config_write(bdf, register, data);
                }
            }
        }
    }
}

/// A window for base address registers.
struct BarWindow {
    root: Arc<PciRoot>,
    space: Space,
    start: u64,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.root.bar_read(self.space, self.start + offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.root.bar_write(self.space, self.start + offset, data);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
