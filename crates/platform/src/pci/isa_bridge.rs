//! The ISA bridge, function 00:1f.0, of machines with firmware.

use crate::acpi_pm;
use crate::sync::lock;
use device::pci::{Bar, ConfigSaved, ConfigSpace, Identity, PciFunction, reg};
use device::state::RestoreError;
use std::sync::Mutex;

/// The device number of the bridge.
pub const DEVICE: u8 = 31;

/// The ISA bridge: that of the I/O controller hub that goes with the Q35 chipset (Intel ICH9, LPC
/// interface). Firmware looks here for power management's ports and below here for serial ports and
/// keyboard. The ports have their addresses already, so the registers that would place them are fixed.
pub struct IsaBridge {
    config: Mutex<ConfigSpace>,
}

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x2918,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    revision: 2,
    // Bridge device, ISA bridge.
    class: 0x06_01_00,
};
/// PMBASE (ICH9 datasheet, §13.1.13): bit 0 says that these are ports.
const REG_PMBASE: u16 = 0x40;
/// ACPI_CNTL (§13.1.14): bit 7 switches the ports on; the interrupt is number 9 by default.
const REG_ACPI_CONTROL: u16 = 0x44;
const ACPI_ENABLE: u8 = 1 << 7;
/// PIRQ routing (§13.1.15, §13.1.17), which firmware writes and systems with ACPI do not read.
const REG_PIRQ_A: u16 = 0x60;
const REG_PIRQ_E: u16 = 0x68;

fn config_space() -> ConfigSpace {
    let mut space = ConfigSpace::new(IDENTITY);
    // It passes everything on. UEFI firmware connects nothing behind a bridge that cannot do that.
    let command = reg::COMMAND_IO | reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER;
    space.set_u16(reg::COMMAND, command);
    space.set_writable_u16(reg::COMMAND, command);
    space.set_u32(REG_PMBASE, u32::from(acpi_pm::spec::PORT_BASE) | 1);
    space.set_u8(REG_ACPI_CONTROL, ACPI_ENABLE);
    // Not routed.
    for register in [REG_PIRQ_A, REG_PIRQ_E] {
        space.set_u32(register, 0x8080_8080);
        space.set_writable_u32(register, 0x8f8f_8f8f);
    }
    space
}

impl IsaBridge {
    /// Creates the bridge.
    pub fn new() -> IsaBridge {
        IsaBridge { config: Mutex::new(config_space()) }
    }

    /// Puts the bridge in its state after power-on.
    pub fn reset(&self) {
        *lock(&self.config) = config_space();
    }

    /// The saved form.
    pub fn save(&self) -> ConfigSaved {
        lock(&self.config).save()
    }

    /// Takes over a saved configuration space.
    ///
    /// # Errors
    /// When it is another function's.
    pub fn restore(&self, saved: ConfigSaved) -> Result<(), RestoreError> {
        lock(&self.config).restore(saved)
    }
}

impl Default for IsaBridge {
    fn default() -> IsaBridge {
        IsaBridge::new()
    }
}

impl PciFunction for IsaBridge {
    fn config_read(&self, register: u16) -> u32 {
        lock(&self.config).read(register)
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        lock(&self.config).write(offset, data);
    }

    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }

    fn bar_read(&self, _index: usize, _offset: u64, _data: &mut [u8]) {}

    fn bar_write(&self, _index: usize, _offset: u64, _data: &[u8]) {}
}
