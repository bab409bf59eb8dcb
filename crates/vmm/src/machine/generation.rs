//! The generation ID: a number in the guest's memory that is another one whenever the guest may not be the
//! only one of its kind any more (Microsoft, "Virtual Machine Generation ID").
//!
//! The guest's system finds it through ACPI (`boot`), and hears of a change by a general-purpose event; a
//! Linux with `CONFIG_VMGENID` then makes its random numbers anew.

use super::Machine;
use crate::Error;
use boot::{GenerationPlace, firmware};
use memory::{Bytes, GuestAddress};

/// The general-purpose event of a change.
pub(super) const EVENT: u8 = 0;

impl Machine {
    /// Gives a guest that is about to boot its ID: the one that was named, or the one that it had before a
    /// reset, or a new one. Firmware finds it in its file, and says later where it has put it.
    pub(super) fn write_generation_id(&mut self) -> Result<(), Error> {
        self.generation_id = self.description.generation_id.and_then(|id| match id.place {
            GenerationPlace::At(address) => Some(address),
            GenerationPlace::Firmware => None,
        });
        match self.generation_id {
            Some(address) => self.put_id(address),
            None => Ok(()),
        }
    }

    /// Where the guest's ID is: the machine has decided it, or firmware has said so.
    pub(super) fn generation_address(&self) -> Option<u64> {
        let from_firmware = || {
            let written = self.platform.fw_cfg.contents(firmware::GENERATION_ADDRESS_FILE)?;
            Some(u64::from_le_bytes(written.try_into().ok()?)).filter(|address| *address != 0)
        };
        self.generation_id.or_else(from_firmware)
    }

    /// Gives a guest that goes on from a snapshot another ID and tells it so, unless the one that it has was
    /// named: then it is no copy.
    pub(super) fn tell_new_generation(&mut self) -> Result<(), Error> {
        let Some(address) = self.generation_address() else { return Ok(()) };
        let mut before = [0; 16];
        if let Err(e) = self.ram.guest().read_slice(&mut before, GuestAddress(address)) {
            if self.generation_id.is_some() {
                return Err(not_in_memory(e));
            }
            // A guest can write what it likes there; it fools only itself.
            log::warn!("the guest's firmware says that its generation ID is at {address:#x}: {e}");
            return Ok(());
        }
        if self.generation.to_guid_bytes() != before {
            self.put_id(address)?;
            self.platform.pm.raise_gpe(EVENT.into());
        }
        Ok(())
    }

    fn put_id(&self, address: u64) -> Result<(), Error> {
        let id = self.generation.to_guid_bytes();
        self.ram.guest().write_slice(&id, GuestAddress(address)).map_err(not_in_memory)
    }
}

fn not_in_memory(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::bad_input("the guest's generation ID does not lie in its memory").with_source(error)
}
