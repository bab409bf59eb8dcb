//! The type-0 configuration header and the capability list (PCI Local Bus Specification 3.0, §6).

use crate::state::RestoreError;
use serde::{Deserialize, Serialize};

/// Byte offsets of header registers (PCI 3.0, §6.1).
pub mod reg {
    #![allow(missing_docs)]
    pub const VENDOR_ID: u16 = 0x00;
    pub const DEVICE_ID: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const REVISION: u16 = 0x08;
    pub const CLASS: u16 = 0x09;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    pub const ROM: u16 = 0x30;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    pub const INTERRUPT_PIN: u16 = 0x3d;

    pub const COMMAND_IO: u16 = 1 << 0;
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
}

/// Who a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface (0xBBSSPP).
    pub class: u32,
}

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; occupies this register and the next.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// A base address register with its present value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Register index, 0 to 5, or [`ROM_BAR`].
    pub index: usize,
    /// What it maps.
    pub kind: BarKind,
    /// Present base address.
    pub base: u64,
    /// Size in bytes, a power of two.
    pub size: u64,
    /// Whether the command register has this kind of decoding switched on.
    pub enabled: bool,
}

/// Index of the expansion ROM's register among [`Bar`]s.
pub const ROM_BAR: usize = 6;

/// The configuration space of one function: values and which of their bits the guest may write.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    values: Vec<u8>,
    writable: Vec<u8>,
    bars: [Option<(BarKind, u64)>; 6],
    rom: Option<u64>,
    capability_tail: u16,
    next_capability: u16,
}

/// Saved form of [`ConfigSpace`]: the first 256 bytes or all 4096.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigSaved {
    /// The values.
    pub values: Vec<u8>,
}

const SIZE: usize = 4096;

impl ConfigSpace {
    /// Creates the header of an endpoint with no BARs and no capabilities.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            values: vec![0; SIZE],
            writable: vec![0; SIZE],
            bars: [None; 6],
            rom: None,
            capability_tail: reg::CAPABILITIES,
            next_capability: 0x40,
        };
        space.set_u16(reg::VENDOR_ID, identity.vendor);
        space.set_u16(reg::DEVICE_ID, identity.device);
        space.set_u16(reg::SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor);
        space.set_u16(reg::SUBSYSTEM_ID, identity.subsystem);
        space.set_u32(reg::REVISION, identity.class << 8 | identity.revision as u32);
        let command = reg::COMMAND_BUS_MASTER | reg::COMMAND_INTX_DISABLE;
        space.set_writable_u16(reg::COMMAND, command);
        space.writable[reg::INTERRUPT_LINE as usize] = 0xff;
        space
    }

    /// Adds a base address register.
    ///
    /// # Panics
    /// When `size` is not a power of two of at least 16, or the register is taken: the device's own
    /// mistake, not the guest's.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) {
        assert!(size.is_power_of_two() && size >= 16 && self.bars[index].is_none());
        let at = reg::BAR0 + 4 * index as u16;
        let (flags, command) = match kind {
            BarKind::Io => (1, reg::COMMAND_IO),
            BarKind::Memory32 => (0, reg::COMMAND_MEMORY),
            BarKind::Memory64 { prefetchable } => (0b100 | (prefetchable as u32) << 3, reg::COMMAND_MEMORY),
        };
        let mask = !(size - 1);
        self.set_u32(at, flags);
        self.set_writable_u32(at, mask as u32);
        if let BarKind::Memory64 { .. } = kind {
            assert!(index < 5 && self.bars[index + 1].is_none());
            self.set_writable_u32(at + 4, (mask >> 32) as u32);
        }
        self.set_writable_u16(reg::COMMAND, self.writable_u16(reg::COMMAND) | command);
        self.bars[index] = Some((kind, size));
    }

    /// Adds the expansion ROM's register (§6.2.5.2).
    ///
    /// # Panics
    /// When `size` is not a power of two of at least 2 KiB: the device's own mistake.
    pub fn add_rom(&mut self, size: u64) {
        assert!(size.is_power_of_two() && size >= 2048);
        self.set_writable_u32(reg::ROM, !(size as u32 - 1) | 1);
        self.rom = Some(size);
    }

    /// Sets the base of a BAR, as firmware would.
    pub fn set_bar_base(&mut self, index: usize, base: u64) {
        let Some((kind, size)) = self.bars[index] else { return };
        let at = reg::BAR0 + 4 * index as u16;
        let flags = self.u32(at) & 0xf & !self.writable_u32(at);
        self.set_u32(at, (base & !(size - 1)) as u32 | flags);
        if let BarKind::Memory64 { .. } = kind {
            self.set_u32(at + 4, (base >> 32) as u32);
        }
    }

    /// The registers' present values.
    pub fn bars(&self) -> Vec<Bar> {
        let command = self.u16(reg::COMMAND);
        let mut bars = Vec::new();
        for (index, bar) in self.bars.iter().enumerate() {
            let Some((kind, size)) = *bar else { continue };
            let at = reg::BAR0 + 4 * index as u16;
            let low = self.u32(at) as u64 & !(size - 1);
            let (base, bit) = match kind {
                BarKind::Io => (low & 0xffff_fffc, reg::COMMAND_IO),
                BarKind::Memory32 => (low, reg::COMMAND_MEMORY),
                BarKind::Memory64 { .. } => (low | (self.u32(at + 4) as u64) << 32, reg::COMMAND_MEMORY),
            };
            bars.push(Bar { index, kind, base, size, enabled: command & bit != 0 });
        }
        // The ROM is there only while somebody reads it.
        let rom = self.u32(reg::ROM);
        if let (Some(size), 1) = (self.rom, rom & 1) {
            let (base, enabled) = (u64::from(rom) & !(size - 1), command & reg::COMMAND_MEMORY != 0);
            bars.push(Bar { index: ROM_BAR, kind: BarKind::Memory32, base, size, enabled });
        }
        bars
    }

    /// Appends a capability (§6.7): `body` follows the two bytes of ID and next pointer; `writable` has
    /// the bits of the body that the guest may write. Returns the capability's offset.
    ///
    /// # Panics
    /// When the capability area is full or the lengths differ: the device's own mistake.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        assert_eq!(body.len(), writable.len());
        let at = self.next_capability;
        let end = at as usize + 2 + body.len();
        assert!(end <= 256, "capabilities do not fit");
        self.values[at as usize] = id;
        self.values[at as usize + 2..end].copy_from_slice(body);
        self.writable[at as usize + 2..end].copy_from_slice(writable);
        self.values[self.capability_tail as usize] = at as u8;
        self.capability_tail = at + 1;
        self.next_capability = end.next_multiple_of(4) as u16;
        self.set_u16(reg::STATUS, self.u16(reg::STATUS) | reg::STATUS_CAPABILITIES);
        at
    }

    /// Reads a doubleword by index; beyond the space reads as ones.
    pub fn read(&self, register: u16) -> u32 {
        let at = register as usize * 4;
        match self.values.get(at..at + 4) {
            Some(bytes) => u32::from_le_bytes(bytes.try_into().expect("four bytes")),
            None => u32::MAX,
        }
    }

    /// Writes the writable bits of up to four bytes at a byte offset; ignores what is beyond the space.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (offset as usize..SIZE).zip(data) {
            let mask = self.writable[at];
            self.values[at] = self.values[at] & !mask | byte & mask;
        }
    }

    /// The value of a 16-bit register.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.values[offset as usize], self.values[offset as usize + 1]])
    }

    /// The value of a 32-bit register.
    pub fn u32(&self, offset: u16) -> u32 {
        self.u16(offset) as u32 | (self.u16(offset + 2) as u32) << 16
    }

    /// Sets an 8-bit register, whether the guest may write it or not.
    pub fn set_u8(&mut self, offset: u16, value: u8) {
        self.values[offset as usize] = value;
    }

    /// Sets a 16-bit register, whether the guest may write it or not.
    pub fn set_u16(&mut self, offset: u16, value: u16) {
        self.values[offset as usize..offset as usize + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Sets a 32-bit register, whether the guest may write it or not.
    pub fn set_u32(&mut self, offset: u16, value: u32) {
        self.values[offset as usize..offset as usize + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Sets which bits of a 32-bit register the guest may write.
    pub fn set_writable_u32(&mut self, offset: u16, mask: u32) {
        self.writable[offset as usize..offset as usize + 4].copy_from_slice(&mask.to_le_bytes());
    }

    /// Sets which bits of a 16-bit register the guest may write.
    pub fn set_writable_u16(&mut self, offset: u16, mask: u16) {
        self.writable[offset as usize..offset as usize + 2].copy_from_slice(&mask.to_le_bytes());
    }

    fn writable_u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.writable[offset as usize], self.writable[offset as usize + 1]])
    }

    fn writable_u32(&self, offset: u16) -> u32 {
        self.writable_u16(offset) as u32 | (self.writable_u16(offset + 2) as u32) << 16
    }

    /// Whether the guest lets the function access memory (bus-master enable).
    pub fn is_bus_master(&self) -> bool {
        self.u16(reg::COMMAND) & reg::COMMAND_BUS_MASTER != 0
    }

    /// The saved form.
    pub fn save(&self) -> ConfigSaved {
        ConfigSaved { values: self.values.clone() }
    }

    /// Takes over saved values: bits that the guest cannot write must be as this function has them.
    ///
    /// # Errors
    /// When the saved space belongs to another function.
    pub fn restore(&mut self, saved: ConfigSaved) -> Result<(), RestoreError> {
        let differs = |at: &usize| (saved.values[*at] ^ self.values[*at]) & !self.writable[*at] != 0;
        if saved.values.len() != SIZE {
            return Err(RestoreError::new("PCI configuration space", "its size is not 4096 bytes"));
        }
        // The status register and MSI-X bookkeeping are set by the device itself, so only identity and
        // structure (BAR flags, capability list) are compared.
        let identity = (0x00..0x04).chain(0x08..0x34).chain(0x40..0x100);
        if let Some(at) = identity.into_iter().find(differs) {
            let reason = format!("byte {at:#x} is {:#x}, not of this device", saved.values[at]);
            return Err(RestoreError::new("PCI configuration space", reason));
        }
        self.values = saved.values;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
            revision: 1,
            class: 0x018000,
        })
    }

    #[test]
    fn a_guest_sizes_a_64_bit_bar_as_the_specification_describes() {
        let mut space = space();
        space.add_bar(0, BarKind::Memory64 { prefetchable: false }, 0x4000);
        space.set_bar_base(0, 0x8_0000_4000);
        assert_eq!((space.u32(0x10), space.u32(0x14)), (0x4004, 8));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((space.u32(0x10), space.u32(0x14)), (0xffff_c004, 0xffff_ffff));
        space.write(0x10, &0x1234_5678u32.to_le_bytes());
        space.write(0x14, &1u32.to_le_bytes());
        assert_eq!(space.bars()[0].base, 0x1_1234_4000);
        assert!(!space.bars()[0].enabled);
        space.write(reg::COMMAND, &[2]);
        assert!(space.bars()[0].enabled);
    }

    #[test]
    fn read_only_registers_stay_and_capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[0, 0xff, 0]);
        let second = space.add_capability(0x11, &[0; 10], &[0; 10]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.u16(0x34) & 0xff, 0x40);
        assert_eq!(space.u16(0x40), 0x4809);
        assert_eq!(space.u16(0x48), 0x0011);
        space.write(0, &[0; 4]);
        space.write(0x42, &[9, 9, 9]);
        assert_eq!(space.read(0), 0x1042_1af4);
        assert_eq!(space.u16(0x42), 0x0901);
        space.write(0xfff, &[0; 4]);
        assert_eq!(space.read(1024), u32::MAX);
    }

    #[test]
    fn a_saved_space_of_another_device_is_refused() {
        let mut a = space();
        a.add_bar(0, BarKind::Memory64 { prefetchable: true }, 0x1000);
        let saved = a.save();
        assert!(a.clone().restore(saved.clone()).is_ok());
        assert!(space().restore(saved).is_err());
    }
}
