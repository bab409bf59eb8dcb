//! Firmware: what a file of it is, where it goes, and what it is told of the machine.
//!
//! A PC's processor starts at its reset vector, sixteen bytes below 4 GiB, so firmware is read-only memory that
//! ends there. BIOS firmware also wants its last 128 KiB below 1 MiB, where chipsets show them. What
//! the machine is firmware learns through fw_cfg, in the files that QEMU's specification and the firmware
//! projects name ([`files`]): the memory map, ACPI tables with instructions how to place them
//! ([`loader`]), SMBIOS tables, the boot order.

mod files;
mod loader;

pub use files::{
    BootDevice, Described, File, FirmwareInfo, GENERATION_ADDRESS_FILE, GENERATION_FILE, GENERATION_OFFSET,
    describe, files, generation_file,
};

use crate::plan::memory_error;
use crate::{Error, ErrorKind};
use memory::{Bytes, GuestAddress, HIGH_RAM_START, PAGE_SIZE, Ram};
use std::io::Read;

/// Firmware ends here, with the reset vector.
pub const END: u64 = HIGH_RAM_START;
/// More than this does not fit below 4 GiB beside the devices there.
pub const SIZE_MAX: u64 = 16 << 20;
/// Less than this is no firmware of a PC.
const SIZE_MIN: u64 = 64 << 10;
/// What a chipset shows of the firmware's end below 1 MiB.
const SHADOW_SIZE: u64 = 128 << 10;
/// Where that ends.
const SHADOW_END: u64 = 1 << 20;
/// Length of the code at the reset vector.
const RESET_VECTOR_LEN: usize = 16;

/// A firmware image.
#[derive(Debug)]
pub struct Firmware {
    data: Vec<u8>,
}

impl Firmware {
    /// Reads firmware from a file.
    ///
    /// # Errors
    /// When the file cannot be read or is no firmware.
    pub fn read(file: &mut dyn Read) -> Result<Firmware, Error> {
        let mut data = Vec::new();
        file.take(SIZE_MAX + 1)
            .read_to_end(&mut data)
            .map_err(|e| Error::new(ErrorKind::Unreadable, "the firmware cannot be read").with_source(e))?;
        Firmware::from_bytes(data)
    }

    /// Takes bytes as firmware.
    ///
    /// # Errors
    /// When they are none: of an impossible size, or without code at the reset vector.
    pub fn from_bytes(data: Vec<u8>) -> Result<Firmware, Error> {
        let bad = |message: String| Err(Error::new(ErrorKind::NotFirmware, message));
        let len = data.len() as u64;
        if !(SIZE_MIN..=SIZE_MAX).contains(&len) || !len.is_multiple_of(PAGE_SIZE) {
            return bad(format!(
                "it is {len} bytes long; firmware has 64 KiB to {} MiB, in steps of 4 KiB",
                SIZE_MAX >> 20
            ));
        }
        let vector = &data[data.len() - RESET_VECTOR_LEN..];
        if vector.iter().all(|byte| *byte == vector[0]) {
            return bad("there is no code at its reset vector, 16 bytes before its end".into());
        }
        Ok(Firmware { data })
    }

    /// The first address of the firmware.
    pub fn start(&self) -> u64 {
        END - self.data.len() as u64
    }

    /// Maps the firmware as read-only memory.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn map(&self, ram: &mut Ram) -> Result<(), Error> {
        ram.add_rom(self.start(), &self.data)
            .map_err(|e| Error::new(ErrorKind::Memory, "the firmware cannot be mapped").with_source(e))
    }

    /// Writes what is seen of the firmware below 1 MiB. There it is RAM from the start, which firmware
    /// that unlocks its shadow finds as it wants it.
    ///
    /// # Errors
    /// When guest memory ends before.
    pub fn write_shadow(&self, ram: &Ram) -> Result<(), Error> {
        let len = SHADOW_SIZE.min(self.data.len() as u64);
        let shadow = &self.data[self.data.len() - len as usize..];
        ram.guest().write_slice(shadow, GuestAddress(SHADOW_END - len)).map_err(memory_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        let vector = len - 16;
        data[vector..vector + 5].copy_from_slice(&[0xea, 0x5b, 0xe0, 0x00, 0xf0]);
        data[len - (128 << 10)] = 7;
        data
    }

    #[test]
    fn firmware_lies_below_4_gib_and_its_end_below_1_mib() {
        let firmware = Firmware::from_bytes(image(256 << 10)).unwrap();
        let mut ram = Ram::new(2 << 20).unwrap();
        firmware.map(&mut ram).unwrap();
        firmware.write_shadow(&ram).unwrap();
        assert_eq!(firmware.start(), 0xfffc_0000);
        assert_eq!(ram.load::<u8>(0xffff_fff0), Some(0xea));
        assert_eq!((ram.load::<u8>(0xf_fff0), ram.load::<u8>(0xe_0000)), (Some(0xea), Some(7)));
        assert!(Firmware::from_bytes(image(256 << 10)).unwrap().map(&mut ram).is_err(), "twice");
    }

    #[test]
    fn what_is_no_firmware_is_refused() {
        for data in [vec![], vec![1; 4096], vec![0; 256 << 10], image((256 << 10) + 1), vec![9; 17 << 20]] {
            let error = Firmware::from_bytes(data).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFirmware);
        }
        let read = Firmware::read(&mut std::io::repeat(1)).unwrap_err();
        assert_eq!(read.kind(), ErrorKind::NotFirmware, "an endless file is not read to its end");
    }
}
