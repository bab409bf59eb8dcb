//! The chip on the memory bus.

use super::model::{FlashModel, FlashSaved};
use crate::sync::lock;
use device::state::{RestoreError, SaveRestore};
use device::{Bus, BusDevice, Overlap};
use std::sync::{Arc, Mutex};

/// Takes what was written to the chip: the offset and the new bytes. Called on the vCPU's thread, with the
/// chip's lock held, so that writes come in order.
pub type Keep = Box<dyn Fn(u64, &[u8]) + Send + Sync>;

/// A flash chip in the machine.
pub struct Flash {
    model: Mutex<FlashModel>,
    keep: Option<Keep>,
}

impl Flash {
    /// Creates a chip with these contents. What is written to it goes to `keep` as well.
    pub fn new(data: Vec<u8>, keep: Option<Keep>) -> Arc<Flash> {
        Arc::new(Flash { model: Mutex::new(FlashModel::new(data)), keep })
    }

    /// Places the chip at `start`.
    ///
    /// # Errors
    /// When the place is taken.
    pub fn attach(self: &Arc<Self>, mmio: &Bus, start: u64) -> Result<(), Overlap> {
        let len = lock(&self.model).data().len() as u64;
        mmio.insert(start, len, self.clone())
    }

    /// Puts the chip in its state after power-on. Its contents stay.
    pub fn reset(&self) {
        lock(&self.model).reset();
    }

    /// The saved form, with the contents. No vCPU runs.
    pub fn save(&self) -> FlashSaved {
        lock(&self.model).save()
    }

    /// Takes over a saved state, with the contents, which go to where writes are kept, too.
    ///
    /// # Errors
    /// When the state is one that the chip can never have.
    pub fn restore(&self, saved: FlashSaved) -> Result<(), RestoreError> {
        let mut model = lock(&self.model);
        model.restore(saved)?;
        if let Some(keep) = &self.keep {
            keep(0, model.data());
        }
        Ok(())
    }
}

impl BusDevice for Flash {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.model).read(offset as usize, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut model = lock(&self.model);
        // One lane: firmware writes bytes, and of wider writes the first byte is the command.
        let Some(changed) = model.write(offset as usize, data[0]) else { return };
        if let Some(keep) = &self.keep {
            keep(changed.start as u64, &model.data()[changed]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flash::spec::*;

    #[test]
    fn what_is_written_is_kept() {
        let (bus, kept) = (Bus::new(), Arc::new(Mutex::new(Vec::new())));
        let log = kept.clone();
        let flash = Flash::new(
            vec![BLANK; 0x2000],
            Some(Box::new(move |at, data| lock(&log).push((at, data.to_vec())))),
        );
        flash.attach(&bus, 0xffc0_0000).unwrap();
        for byte in [PROGRAM, 7] {
            bus.write(0xffc0_1000, &[byte]);
        }
        bus.write(0xffc0_1000, &[READ_ARRAY]);
        let mut word = [0; 2];
        bus.read(0xffc0_1000, &mut word);
        assert_eq!(word, [7, BLANK]);
        assert_eq!(*lock(&kept), [(0x1000, vec![7])]);
    }
}
