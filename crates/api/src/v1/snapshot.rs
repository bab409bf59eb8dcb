//! Snapshots and clones of machines.

use super::Time;
use serde::{Deserialize, Serialize};

/// A snapshot: a machine at one moment, with its memory and disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its identity, a UUID.
    pub id: String,
    /// Its name, unique for its machine.
    pub name: String,
    /// The machine's name.
    pub vm: String,
    /// For people.
    pub description: String,
    /// Bytes that it takes on the host.
    pub bytes: u64,
    /// When it was made.
    pub created: Time,
}

/// A snapshot to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotParams {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Whether the guest's agent freezes its file systems for it, so that the disks in it are whole without the memory.
    /// Without an agent there is no snapshot then.
    #[serde(default)]
    pub freeze: bool,
}

/// Most machines that are cloned at a time.
pub const CLONES_MAX: usize = 100;

/// Machines to be that are copies of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CloneParams {
    /// Their names: 1 to 100. They share memory and disks until they change them.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 100))]
    pub names: Vec<String>,
    /// The snapshot of the machine that they go on from; as the machine is now when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}
