//! Exit statuses of a worker: why its machine ended.

use serde::{Deserialize, Serialize};

/// The guest powered itself off, by itself or after its power button was pressed.
pub const POWERED_OFF: u8 = 0;
/// The worker or its host failed.
pub const FAILED: u8 = 1;
/// The configuration is wrong or something that it names cannot be used; nothing was changed.
pub const BAD_INPUT: u8 = 2;
/// The machine was stopped from outside without the guest's doing: a `stop` request, the escape key, or
/// a repeated signal.
pub const STOPPED: u8 = 3;
/// The guest crashed: a triple fault, in a machine that does not reboot.
pub const CRASHED: u8 = 4;
/// The guest asked for a reset, in a machine that does not reboot. Even, so that no debug exit is
/// mistaken for it.
pub const RESET: u8 = 6;

/// The exit status for a value that the guest wrote to the debug exit port: `(value << 1) | 1`, always
/// odd, as QEMU's isa-debug-exit has it. With that port enabled, odd statuses are the guest's.
pub fn debug_exit(value: u8) -> u8 {
    value << 1 | 1
}

/// What a worker writes into the file of `report` when its machine has ended: for whoever is not its parent
/// and cannot wait for its exit status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The exit status.
    pub status: u8,
    /// Why, for people; absent when there is nothing to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
