//! The host bridge, function 00:00.0.

use super::spec::{ECAM_BASE, PCIEXBAR_ADDRESS, PCIEXBAR_ENABLE, REG_PCIEXBAR};
use crate::sync::lock;
use device::pci::{Bar, ConfigSaved, ConfigSpace, Identity, PciFunction};
use device::state::RestoreError;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The host bridge: an identity, by which systems and firmware know the machine, and the register that
/// places configuration space in memory. It is that of the Q35 chipset (Intel 82G33/G31/P35/P31 Express DRAM
/// controller), which firmware for virtual machines expects, with the subsystem that marks a virtual one.
/// Its shadow memory registers do not exist: what is below 1 MiB is always RAM.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
    /// PCIEXBAR as last written, so that accesses need not take the lock.
    pciexbar: AtomicU64,
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

/// Where configuration space is until firmware moves it: a machine that boots without firmware has it
/// where firmware would have left it.
const PCIEXBAR_DEFAULT: u64 = ECAM_BASE | PCIEXBAR_ENABLE;

fn config_space() -> ConfigSpace {
    let mut space = ConfigSpace::new(IDENTITY);
    space.set_u32(REG_PCIEXBAR, PCIEXBAR_DEFAULT as u32);
    space.set_u32(REG_PCIEXBAR + 4, (PCIEXBAR_DEFAULT >> 32) as u32);
    let writable = PCIEXBAR_ADDRESS | PCIEXBAR_ENABLE;
    space.set_writable_u32(REG_PCIEXBAR, writable as u32);
    space.set_writable_u32(REG_PCIEXBAR + 4, (writable >> 32) as u32);
    space
}

fn pciexbar(space: &ConfigSpace) -> u64 {
    space.u32(REG_PCIEXBAR) as u64 | (space.u32(REG_PCIEXBAR + 4) as u64) << 32
}

impl HostBridge {
    /// Creates the bridge.
    pub fn new() -> HostBridge {
        HostBridge { config: Mutex::new(config_space()), pciexbar: AtomicU64::new(PCIEXBAR_DEFAULT) }
    }

    /// Puts the bridge in its state after power-on.
    pub fn reset(&self) {
        let mut config = lock(&self.config);
        *config = config_space();
        self.pciexbar.store(PCIEXBAR_DEFAULT, Ordering::Relaxed);
    }

    /// The first address of configuration space, if it is decoded at all.
    pub fn ecam_base(&self) -> Option<u64> {
        let register = self.pciexbar.load(Ordering::Relaxed);
        (register & PCIEXBAR_ENABLE != 0).then_some(register & PCIEXBAR_ADDRESS)
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
        let mut config = lock(&self.config);
        config.restore(saved)?;
        self.pciexbar.store(pciexbar(&config), Ordering::Relaxed);
        Ok(())
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
        let mut config = lock(&self.config);
        config.write(offset, data);
        self.pciexbar.store(pciexbar(&config), Ordering::Relaxed);
    }

    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }

    fn bar_read(&self, _index: usize, _offset: u64, _data: &mut [u8]) {}

    fn bar_write(&self, _index: usize, _offset: u64, _data: &[u8]) {}
}
