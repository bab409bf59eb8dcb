//! The root complex: functions by number, registers by address.

use super::map::{BarMap, Space};
use super::spec::*;
use super::{HostBridge, Window, Windows};
use crate::IrqRouter;
use crate::sync::lock;
use device::pci::{Bar, BarKind, Bdf, ConfigSaved, PciFunction, ROM_BAR, reg};
use device::state::RestoreError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// Why a function could not be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// The place is taken.
    #[error("PCI {0} is taken by another function")]
    Taken(Bdf),
    /// There is no such place.
    #[error("PCI {0} is not a possible place: only bus 0, devices 0 to 31, functions 0 to 7")]
    NoSuchPlace(Bdf),
    /// All devices of the bus are taken.
    #[error("all 32 places on the PCI bus are taken")]
    BusFull,
    /// A window is too small for all registers that belong in it.
    #[error("the PCI windows have no room for BAR {index} of {bdf} ({size:#x} bytes)")]
    NoRoom {
        /// The function.
        bdf: Bdf,
        /// The register.
        index: usize,
        /// Its size.
        size: u64,
    },
}

/// The state of the root complex. Functions other than the host bridge are saved by their owners.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PciRootSaved {
    config_address: u32,
    host_bridge: ConfigSaved,
}

type Functions = BTreeMap<Bdf, Arc<dyn PciFunction>>;

/// The root complex.
///
/// No lock is held while a function is called. The map of registers is replaced as a whole when a
/// configuration write may have changed it; accesses in flight finish with the old one.
pub struct PciRoot {
    windows: Windows,
    functions: RwLock<Functions>,
    map: RwLock<Arc<BarMap>>,
    /// Held while the map is made anew, so that the last one made saw the last write.
    mapping: Mutex<()>,
    /// Told after each new map.
    on_remap: OnceLock<Box<dyn Fn() + Send + Sync>>,
    config_address: AtomicU32,
    host_bridge: Arc<HostBridge>,
}

impl PciRoot {
    /// Creates a root with a host bridge at 00:00.0.
    pub fn new(windows: Windows) -> Arc<PciRoot> {
        let host_bridge = Arc::new(HostBridge::new());
        let first: Arc<dyn PciFunction> = host_bridge.clone();
        Arc::new(PciRoot {
            windows,
            functions: RwLock::new(BTreeMap::from([(Bdf::on_bus_0(0, 0), first)])),
            map: RwLock::default(),
            mapping: Mutex::new(()),
            on_remap: OnceLock::new(),
            config_address: AtomicU32::new(0),
            host_bridge,
        })
    }

    /// The windows that registers can be in.
    pub fn windows(&self) -> Windows {
        self.windows
    }

    /// Where PCI configuration space is in memory, if it is decoded: firmware may move it.
    pub fn ecam_base(&self) -> Option<u64> {
        self.host_bridge.ecam_base()
    }

    /// Places a function.
    ///
    /// # Errors
    /// When the place is taken or does not exist.
    pub fn add(&self, bdf: Bdf, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        if bdf.bus != 0 || bdf.device >= DEVICES || bdf.function >= FUNCTIONS {
            return Err(PciError::NoSuchPlace(bdf));
        }
        {
            let mut functions = write(&self.functions);
            if functions.contains_key(&bdf) {
                return Err(PciError::Taken(bdf));
            }
            functions.insert(bdf, function);
        }
        self.remap();
        Ok(())
    }

    /// The lowest device of bus 0 that has no function yet.
    ///
    /// # Errors
    /// When there is none.
    pub fn free_device(&self) -> Result<u8, PciError> {
        let functions = read(&self.functions);
        let free = |device: &u8| functions.keys().all(|bdf| bdf.device != *device);
        (0..DEVICES).find(free).ok_or(PciError::BusFull)
    }

    /// Removes a function.
    pub fn remove(&self, bdf: Bdf) -> Option<Arc<dyn PciFunction>> {
        let removed = write(&self.functions).remove(&bdf);
        self.remap();
        removed
    }

    /// All functions, in order.
    pub fn functions(&self) -> Vec<(Bdf, Arc<dyn PciFunction>)> {
        read(&self.functions).iter().map(|(bdf, function)| (*bdf, function.clone())).collect()
    }

    /// Does what firmware does before a system starts: gives every base address register a place in its
    /// window (those that want a place above 4 GiB get one below if there is no room), the largest first,
    /// writes interrupt lines, and switches decoding on. Not for a machine that is restored.
    ///
    /// # Errors
    /// When a window is too small.
    pub fn assign_bars(&self) -> Result<(), PciError> {
        let functions = self.functions();
        let mut bars: Vec<(Bdf, &dyn PciFunction, Bar)> = Vec::new();
        for (bdf, function) in &functions {
            let registers = function.bars().into_iter().filter(|bar| bar.index != ROM_BAR);
            bars.extend(registers.map(|bar| (*bdf, &**function, bar)));
        }
        bars.sort_by_key(|(bdf, _, bar)| (std::cmp::Reverse(bar.size), *bdf, bar.index));
        let mut io = Allocator::new(self.windows.io, 1);
        let mut mmio32 = Allocator::new(self.windows.mmio32, BAR_ALIGN);
        let mut mmio64 = Allocator::new(self.windows.mmio64, BAR_ALIGN);
        for (bdf, function, Bar { index, kind, size, .. }) in bars {
            let base = match kind {
                BarKind::Io => io.take(size),
                BarKind::Memory32 => mmio32.take(size),
                BarKind::Memory64 { .. } => mmio64.take(size).or_else(|| mmio32.take(size)),
            };
            let base = base.ok_or(PciError::NoRoom { bdf, index, size })?;
            let register = reg::BAR0 + 4 * index as u16;
            function.config_write(register, &(base as u32).to_le_bytes());
            if let BarKind::Memory64 { .. } = kind {
                function.config_write(register + 4, &((base >> 32) as u32).to_le_bytes());
            }
            let decode = match Space::of(kind) {
                Space::Io => reg::COMMAND_IO,
                Space::Memory => reg::COMMAND_MEMORY,
            };
            let command = function.config_read(reg::COMMAND / 4) as u16 | decode;
            function.config_write(reg::COMMAND, &command.to_le_bytes());
        }
        for (bdf, function) in &functions {
            let [_, pin, ..] = function.config_read(reg::INTERRUPT_LINE / 4).to_le_bytes();
            if pin != 0 {
                function.config_write(reg::INTERRUPT_LINE, &[IrqRouter::pci_gsi(bdf.device) as u8]);
            }
        }
        self.remap();
        Ok(())
    }

    /// Makes the map of registers anew. Configuration writes do it by themselves; call it after a function
    /// has changed its registers in another way: by its own reset, or a restore.
    pub fn remap(&self) {
        let _order = lock(&self.mapping);
        let functions = read(&self.functions).clone();
        let map = Arc::new(BarMap::new(&functions));
        *write(&self.map) = map;
        if let Some(callback) = self.on_remap.get() {
            callback();
        }
    }

    /// Sets what is called whenever base address registers may have moved, on the thread that moved them, one
    /// call at a time. It may look at functions, and must change none. Once.
    pub fn on_remap(&self, callback: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_remap.set(Box::new(callback));
    }

    /// Puts root and host bridge in their state after power-on. Functions reset themselves, and
    /// [`PciRoot::remap`] follows.
    pub fn reset(&self) {
        self.config_address.store(0, Ordering::Relaxed);
        self.host_bridge.reset();
        self.remap();
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> PciRootSaved {
        PciRootSaved {
            config_address: self.config_address.load(Ordering::Relaxed),
            host_bridge: self.host_bridge.save(),
        }
    }

    /// Takes over a saved state. The functions are restored by their owners, then [`PciRoot::remap`].
    ///
    /// # Errors
    /// When the state is one that the root can never have.
    pub fn restore(&self, saved: PciRootSaved) -> Result<(), RestoreError> {
        if saved.config_address & !CONFIG_ADDRESS_MASK != 0 {
            return Err(RestoreError::new("PCI root", "the configuration address has impossible bits"));
        }
        self.host_bridge.restore(saved.host_bridge)?;
        self.config_address.store(saved.config_address, Ordering::Relaxed);
        self.remap();
        Ok(())
    }

    /// The configuration address port.
    pub(super) fn config_address(&self) -> u32 {
        self.config_address.load(Ordering::Relaxed)
    }

    pub(super) fn set_config_address(&self, value: u32) {
        self.config_address.store(value & CONFIG_ADDRESS_MASK, Ordering::Relaxed);
    }

    /// Reads configuration space of a function; ones where there is none.
    pub(super) fn config_read(&self, bdf: Bdf, offset: u16, data: &mut [u8]) {
        let Some((function, siblings)) = self.function(bdf) else { return };
        let mut register = None;
        for (at, byte) in (offset..).zip(data) {
            let (index, value) = match register {
                Some((index, value)) if index == at / 4 => (index, value),
                _ => (at / 4, function.config_read(at / 4)),
            };
            register = Some((index, value));
            *byte = value.to_le_bytes()[at as usize % 4];
            if at == reg::HEADER_TYPE && siblings {
                *byte |= HEADER_MULTI_FUNCTION;
            }
        }
    }

    /// Writes configuration space of a function.
    pub(super) fn config_write(&self, bdf: Bdf, offset: u16, data: &[u8]) {
        let Some((function, _)) = self.function(bdf) else { return };
        // A function takes 1, 2 or 4 bytes inside one doubleword.
        let piece = match data.len() {
            len @ (2 | 4) if (offset as usize).is_multiple_of(len) => len,
            8 if offset.is_multiple_of(4) => 4,
            _ => 1,
        };
        for (at, piece) in (offset..).step_by(piece).zip(data.chunks(piece)) {
            function.config_write(at, piece);
        }
        let end = offset as usize + data.len();
        let touches =
            |first: u16, len: usize| (offset as usize) < first as usize + len && end > first as usize;
        if touches(reg::COMMAND, 2) || touches(reg::BAR0, 24) || touches(reg::ROM, 4) {
            self.remap();
        }
    }

    /// Reads memory or ports behind base address registers.
    pub(super) fn bar_read(&self, space: Space, address: u64, data: &mut [u8]) {
        let map = read(&self.map).clone();
        if let Some(target) = map.find(space, address, data.len() as u64) {
            target.function.bar_read(target.index, target.offset, data);
        }
    }

    /// Writes memory or ports behind base address registers.
    pub(super) fn bar_write(&self, space: Space, address: u64, data: &[u8]) {
        let map = read(&self.map).clone();
        if let Some(target) = map.find(space, address, data.len() as u64) {
            target.function.bar_write(target.index, target.offset, data);
        }
    }

    /// A function, and whether it is the first of several in its device.
    fn function(&self, bdf: Bdf) -> Option<(Arc<dyn PciFunction>, bool)> {
        let functions = read(&self.functions);
        let function = functions.get(&bdf)?.clone();
        let siblings = bdf.function == 0
            && functions
                .range(bdf..)
                .nth(1)
                .is_some_and(|(next, _)| (next.bus, next.device) == (bdf.bus, bdf.device));
        Some((function, siblings))
    }
}

/// Hands out a window from its start on.
struct Allocator {
    next: u64,
    end: u64,
    align: u64,
}

impl Allocator {
    fn new(window: Window, align: u64) -> Allocator {
        // Base 0 would mean that the register is not set.
        Allocator { next: window.start.max(1), end: window.end(), align }
    }

    fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.next.checked_next_multiple_of(size.max(self.align))?;
        let end = base.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(base)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}
