//! Saving a machine and taking over a saved one. No vCPU runs.

use super::Machine;
use crate::Error;
use crate::snapshot::disks::Tracked;
use crate::snapshot::restore::from_leaf;
use crate::snapshot::state::FunctionSaved;
use crate::snapshot::{Folder, MachineSaved};
use api::worker::snapshot::CpuidLeaf;
use device::state::RestoreError;
use memory::{PageSet, Ram};
use std::sync::Arc;
use x86::CpuState;

impl Machine {
    /// Makes the devices stand still while guest time goes on: for a moment in which memory and disks are
    /// not written.
    pub fn hold_devices(&self) {
        self.functions.iter().for_each(|function| function.pause());
        self.ahci.iter().for_each(|ahci| ahci.pause());
    }

    /// Undoes [`Machine::hold_devices`].
    pub fn release_devices(&self) {
        self.functions.iter().for_each(|function| function.resume());
        self.ahci.iter().for_each(|ahci| ahci.resume());
    }

    /// Begins to note which pages are written. Devices are held.
    pub fn log_writes(&self) {
        self.ram.set_dirty_logging(true);
        self.vm.resynchronise();
    }

    /// Ends it, and forgets what was noted.
    pub fn end_log(&self) {
        self.ram.set_dirty_logging(false);
        self.vm.resynchronise();
    }

    /// Takes the pages that were written since the last time.
    ///
    /// # Errors
    /// When the engine cannot tell.
    pub fn take_dirty(&self) -> Result<PageSet, Error> {
        self.vm
            .collect_dirty()
            .map_err(|e| Error::host("the engine cannot tell which memory was written").with_source(e))?;
        let dirty = self.ram.take_dirty();
        self.vm.resynchronise();
        Ok(dirty)
    }

    /// The state of all but memory and disks. The machine is paused; `vcpus` are its processors.
    pub fn save(&self, vcpus: Vec<CpuState>) -> MachineSaved {
        let functions = self
            .functions
            .iter()
            .map(|function| FunctionSaved { name: function.name().to_owned(), state: function.save() });
        let functions = functions.collect();
        let platform = self.platform.save();
        let mut saved =
            MachineSaved::new(self.clock.save(), vcpus, platform, functions, self.generation_address());
        saved.ahci = self.ahci.as_ref().map(|ahci| ahci.save());
        saved
    }

    /// Takes over a saved state but for the processors, which have taken over theirs already. The machine is
    /// as it was built; it is paused afterwards.
    ///
    /// # Errors
    /// When a part refuses its state. The machine is of no use then.
    pub fn restore(&mut self, saved: MachineSaved) -> Result<(), Error> {
        let refused = |e: RestoreError| {
            Error::bad_input("the snapshot cannot be used")
                .with_source(e)
                .with_advice("take another snapshot, or check --restore")
        };
        self.hold_devices();
        let is = self.functions.iter().map(|function| function.name());
        if !is.eq(saved.functions.iter().map(|function| function.name.as_str())) {
            return Err(refused(RestoreError::new("PCI devices", "they are others than the machine's")));
        }
        // Interrupt controllers first, within the platform: lines that devices then drive meet controllers
        // that know their levels.
        self.platform.restore(saved.platform).map_err(refused)?;
        for (function, saved) in self.functions.iter().zip(saved.functions) {
            function.restore(saved.state).map_err(refused)?;
        }
        match (&self.ahci, saved.ahci) {
            (Some(ahci), Some(saved)) => ahci.restore(saved).map_err(refused)?,
            (None, None) => {}
            _ => {
                return Err(refused(RestoreError::new("AHCI controller", "only one of the machines has it")));
            }
        }
        self.platform.pci.remap();
        if !self.source.is_firmware() {
            self.generation_id = saved.generation_id;
        }
        self.tell_new_generation()
    }

    /// Where snapshots are made, and the disks as they are watched.
    pub fn snapshots(&self) -> Option<&(Folder, Vec<Arc<Tracked>>)> {
        self.snapshots.as_ref()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// What the guest's processors say of themselves.
    pub fn cpuid(&self) -> Vec<CpuidLeaf> {
        self.cpuid.iter().map(from_leaf).collect()
    }

    /// Frequency of the guest's time-stamp counter in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.clock.tsc_hz()
    }

    /// Wall-clock time of the guest in milliseconds since 1970.
    pub fn wall_ms(&self) -> u64 {
        self.clock.wall().as_millis() as u64
    }
}
