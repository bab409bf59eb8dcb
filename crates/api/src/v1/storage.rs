//! Pools and volumes.

use super::Time;
use crate::ByteSize;
use serde::{Deserialize, Serialize};

/// The pool that is always there.
pub const DEFAULT_POOL: &str = "default";

/// Where volumes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub driver: PoolDriver,
    /// Where it is on the host.
    pub path: String,
    /// Size of what it lies on, in bytes.
    pub size_bytes: u64,
    /// Of that, what is free.
    pub available_bytes: u64,
    /// Volumes in it, of all projects.
    pub volumes: u64,
    /// When it was created.
    pub created: Time,
}

/// What a pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PoolDriver {
    /// Files in a folder.
    Directory,
}

/// A pool to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PoolParams {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub driver: PoolDriver,
    /// An empty or new folder of the host, as an absolute path.
    pub path: String,
}

/// A disk that can be attached to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Its name, unique in its project.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// The pool that it lies in.
    pub pool: String,
    /// What the guest sees.
    pub size: ByteSize,
    /// What it occupies on the host, in bytes.
    pub used_bytes: u64,
    /// Machines that have it as a disk.
    pub vms: Vec<String>,
    /// When it was created.
    pub created: Time,
}

/// A volume to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeParams {
    /// Its name.
    pub name: String,
    /// The pool; the default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What the guest shall see: a multiple of 512 bytes.
    pub size: ByteSize,
}
