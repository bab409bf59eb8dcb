//! The host.

use super::Time;
use serde::{Deserialize, Serialize};

/// The machine that the daemon runs on, and the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    /// The host's name.
    pub name: String,
    /// Version of the daemon.
    pub version: String,
    /// `user` for a daemon of one user without rights, `system` for the host's.
    pub mode: String,
    /// The daemon's process.
    pub pid: u32,
    /// When the daemon started.
    pub started: Time,
    /// The host's kernel.
    pub kernel: String,
    /// The host's processor.
    pub cpu_model: String,
    /// Processors that the daemon may use.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory that could be had, in bytes.
    pub memory_available_bytes: u64,
    /// Virtual machines that are defined.
    pub vms: u64,
    /// Of these, those that run or are paused.
    pub vms_running: u64,
    /// vCPUs of running machines.
    pub cpus_running: u64,
    /// Memory of running machines, in bytes.
    pub memory_running_bytes: u64,
    /// Where the daemon keeps its things.
    pub data: String,
}
