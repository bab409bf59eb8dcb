//! The generation ID: a number in the guest's memory that is another one whenever the guest may not be the
//! only one of its kind any more (Microsoft, "Virtual Machine Generation ID").
//!
//! The guest's system finds it through ACPI (`boot`), and hears of a change by a general-purpose event; a
//! Linux with `CONFIG_VMGENID` then makes its random numbers anew.

use super::Machine;
use crate::Error;
use crate::spec::random_bytes;
use memory::{Bytes, GuestAddress};

/// The general-purpose event of a change.
pub(super) const EVENT: u8 = 0;

impl Machine {
    /// Gives a guest that is about to boot its first ID.
    pub(super) fn write_generation_id(&mut self) -> Result<(), Error> {
        self.generation_id = self.description.generation_id.map(|id| id.address);
        self.renew()
    }

    /// Gives a guest that goes on from a snapshot another ID and tells it so.
    pub(super) fn tell_new_generation(&mut self) -> Result<(), Error> {
        if self.generation_id.is_some() {
            self.renew()?;
            self.platform.pm.raise_gpe(EVENT.into());
        }
        Ok(())
    }

    fn renew(&self) -> Result<(), Error> {
        let Some(address) = self.generation_id else { return Ok(()) };
        let id = random_bytes::<16>()?;
        self.ram.guest().write_slice(&id, GuestAddress(address)).map_err(|e| {
            Error::bad_input("the guest's generation ID does not lie in its memory").with_source(e)
        })
    }
}
