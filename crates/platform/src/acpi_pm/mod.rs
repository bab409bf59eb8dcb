//! ACPI fixed hardware: power management event and control registers, PM timer, general-purpose events.
//!
//! `AcpiPmModel` is the register model, [`AcpiPm`] the wiring. The ACPI tables must name the ports in
//! [`spec`]. There is no SMI command port: ACPI mode is on from the start.

mod device;
mod model;
pub mod spec;

pub use device::AcpiPm;
pub use model::{AcpiPmEffect, AcpiPmModel, AcpiPmSaved};
