//! How the guest reaches a device.

mod pci;
mod registers;

pub use pci::{VirtioPci, VirtioPciSaved, notify_offset};
pub use registers::{Effect, Live, Registers, RegistersSaved};
