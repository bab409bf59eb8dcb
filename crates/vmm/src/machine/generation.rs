//! The generation ID: a number in the guest's memory that is another one whenever the guest may not be the
//! only one of its kind any more (Microsoft, "Virtual Machine Generation ID").
//!
//! The guest's system finds it through ACPI (`boot`), and hears of a change by a general-purpose event; a
//! Linux with `CONFIG_VMGENID` then makes its random numbers anew.

use super::Machine;
use crate::Error;
use memory::{Bytes, GuestAddress};

/// The general-purpose event of a change.
pub(super) const EVENT: u8 = 0;

impl Machine {
    /// Gives a guest that is about to boot its ID: the one that was named, or the one that it had before a
    /// reset, or a new one.
    pub(super) fn write_generation_id(&mut self) -> Result<(), Error> {
        self.generation_id = self.description.generation_id.map(|id| id.address);
        self.put_id()
    }

    /// Gives a guest that goes on from a snapshot another ID and tells it so, unless the one that it has was
    /// named: then it is no copy.
    pub(super) fn tell_new_generation(&mut self) -> Result<(), Error> {
        let Some(address) = self.generation_id else { return Ok(()) };
        let mut before = [0; 16];
        self.ram.guest().read_slice(&mut before, GuestAddress(address)).map_err(not_in_memory)?;
        if self.generation.to_guid_bytes() != before {
            self.put_id()?;
            self.platform.pm.raise_gpe(EVENT.into());
        }
        Ok(())
    }

    fn put_id(&self) -> Result<(), Error> {
        let Some(address) = self.generation_id else { return Ok(()) };
        let id = self.generation.to_guid_bytes();
        self.ram.guest().write_slice(&id, GuestAddress(address)).map_err(not_in_memory)
    }
}

fn not_in_memory(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::bad_input("the guest's generation ID does not lie in its memory").with_source(error)
}
