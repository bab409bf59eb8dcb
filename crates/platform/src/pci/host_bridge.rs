//! The host bridge, function 00:00.0.

use crate::sync::lock;
use device::pci::{Bar, ConfigSaved, ConfigSpace, Identity, PciFunction};
use device::state::RestoreError;
use std::sync::Mutex;

/// The host bridge: nothing but an identity, by which systems and firmware know the machine. It is that of
/// the Q35 chipset (Intel 82G33/G31/P35/P31 Express DRAM controller), which UEFI firmware for virtual
/// machines expects, with the subsystem that marks a virtual one.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x29c0,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    revision: 0,
    // Bridge device, host bridge.
    class: 0x06_00_00,
};

impl HostBridge {
    /// Creates the bridge.
    pub fn new() -> HostBridge {
        HostBridge { config: Mutex::new(ConfigSpace::new(IDENTITY)) }
    }

    /// Puts the bridge in its state after power-on.
    pub fn reset(&self) {
        *lock(&self.config) = ConfigSpace::new(IDENTITY);
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

impl Default for HostBridge {
    fn default() -> HostBridge {
        HostBridge::new()
    }
}

impl PciFunction for HostBridge {
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
