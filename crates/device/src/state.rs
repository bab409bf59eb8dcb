//! Saving and restoring devices.
//!
//! Each device has a plain `XSaved` struct: registers and in-flight work as data, no pointers, with
//! serde. It is read back as untrusted input: [`SaveRestore::restore`] checks every value and refuses
//! what the device could never have reached, so that a hostile snapshot can do no more than a hostile
//! guest.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// Why a saved state was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct RestoreError {
    /// The device.
    pub device: &'static str,
    /// What is wrong with the state, as a clause: "queue 3 is larger than 256".
    pub reason: String,
}

impl RestoreError {
    /// Creates an error.
    pub fn new(device: &'static str, reason: impl Into<String>) -> RestoreError {
        RestoreError { device, reason: reason.into() }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the saved state of {} cannot be used: {}", self.device, self.reason)
    }
}

impl std::error::Error for RestoreError {}

/// A device whose state can be saved and restored.
pub trait SaveRestore {
    /// The saved form. Its serde layout is a contract with old snapshots: add fields with defaults,
    /// never change the meaning of one.
    type Saved: Serialize + DeserializeOwned;

    /// Returns the state. The device must be quiescent: no vCPU runs and its workers are stopped.
    fn save(&self) -> Self::Saved;

    /// Takes over a state, checking it. On error the device is as before.
    ///
    /// # Errors
    /// When a value is one that the device can never have.
    fn restore(&mut self, saved: Self::Saved) -> Result<(), RestoreError>;
}
