//! The devices of a PC: serial ports, real-time clock, interrupt controllers, interval timer, keyboard
//! controller with keyboard, display adapter, ACPI power management, firmware configuration, PCI root, debug ports.
//!
//! Each device is a folder of the same shape: `spec.rs` holds the numbers of its data sheet, `model.rs` its
//! registers as a pure state machine (no lock, no thread, no bus; time is an argument), `device.rs` puts
//! the model behind a lock and connects it to buses, clock and interrupt lines. [`Platform`] makes the
//! standard set and wires it.
//!
//! **Locks.** A device sets its interrupt line under its own lock. From there the way leads through
//! [`IrqRouter`] to [`Pic`](pic::Pic) and [`IoApic`](ioapic::IoApic), which hold no lock when they tell a
//! processor; so no order of locks closes a circle, whatever an engine holds when it calls them.
//! Callbacks to the outside (reset, power off, room for input) are made with no lock held.
//!
//! **Time** comes from the machine's clock only. Nothing ticks: counters are computed when they are read,
//! and a timer is armed only while a guest waits for an interrupt.

#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod debug;
pub mod flash;
pub mod fuzzing;
pub mod fw_cfg;
pub mod i8042;
pub mod ioapic;
mod irq_router;
pub mod pci;
pub mod pic;
pub mod pit;
mod platform;
mod ports;
pub mod reset;
pub mod rtc;
pub mod serial;
mod sync;
pub mod vga;

pub use irq_router::{ISA_IRQS, IrqRouter, PCI_GSI_BASE, PCI_GSIS, TIMER_GSI};
pub use platform::{
    DisplayConfig, FirmwareDevices, FlashConfig, Platform, PlatformConfig, PlatformEvent, PlatformSaved,
};
