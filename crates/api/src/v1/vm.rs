//! Virtual machines.

use super::Time;
use super::error::{ApiError, ErrorCode};
use super::guest::Guest;
use super::limits::Limits;
use super::mount::MountConfig;
use super::network::{NicConfig, Port};
use crate::ByteSize;
use crate::agent::Provision;
use crate::image::ImageFirmware;
use crate::worker::config::{BootMethod, CPUS_DEFAULT, EngineChoice, MEMORY_DEFAULT, OnReset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a machine shall be, as users write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Names and values of the user's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The image that it comes from, by name or digest: it gives the machine its first disks and what it boots.
    /// Chosen when the machine is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What it boots. An image says so by itself.
    #[serde(default, skip_serializing_if = "BootConfig::is_default")]
    pub boot: BootConfig,
    /// Number of vCPUs.
    #[serde(default = "default_cpus")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 255))]
    pub cpus: u32,
    /// Guest memory.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// What the processors can do: `x86-64-v2`, `x86-64-v3`, `host`. Default: the newest that works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// What executes guest code.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Disks, in the order in which the guest sees them; behind those of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Network cards. When absent, one in the network `user`.
    #[serde(default = "default_nics")]
    pub nics: Vec<NicConfig>,
    /// Folders of the host that the guest sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountConfig>,
    /// What it may use of the host at most.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// What a reset by the guest does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Whether the machine starts with the daemon.
    #[serde(default)]
    pub autostart: Autostart,
    /// What happens when the machine's process ends by a fault.
    #[serde(default)]
    pub restart: RestartPolicy,
}

fn default_cpus() -> u32 {
    CPUS_DEFAULT
}
fn default_memory() -> ByteSize {
    MEMORY_DEFAULT
}
fn default_nics() -> Vec<NicConfig> {
    vec![NicConfig::default()]
}

impl VmConfig {
    /// A machine with this kernel and defaults for all else.
    pub fn new(kernel: impl Into<String>) -> VmConfig {
        VmConfig::booting(BootConfig { kernel: Some(kernel.into()), ..BootConfig::default() })
    }

    /// A machine that comes from this image, with defaults for all else.
    pub fn of_image(image: impl Into<String>) -> VmConfig {
        VmConfig { image: Some(image.into()), ..VmConfig::booting(BootConfig::default()) }
    }

    /// A machine that boots this, with defaults for all else.
    pub fn booting(boot: BootConfig) -> VmConfig {
        VmConfig {
            description: String::new(),
            labels: BTreeMap::new(),
            image: None,
            boot,
            cpus: default_cpus(),
            memory: default_memory(),
            cpu_model: None,
            engine: EngineChoice::default(),
            disks: Vec::new(),
            nics: default_nics(),
            mounts: Vec::new(),
            limits: Limits::default(),
            on_reset: OnReset::default(),
            autostart: Autostart::default(),
            restart: RestartPolicy::default(),
        }
    }
}

/// What a machine boots: a kernel, or its disks by firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// Kernel: a bzImage or an ELF executable, as an absolute path of the host. Only for admins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Firmware of the host's packages, which boots one of the disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<ImageFirmware>,
    /// Initial RAM disk, as an absolute path of the host. Only for admins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
    /// How to enter the kernel.
    #[serde(default)]
    pub method: BootMethod,
}

impl BootConfig {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == BootConfig::default()
    }
}

/// A disk of a machine: a volume, or a path of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// A volume of the same project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// A file or block device of the host in raw format, as an absolute path. Only for admins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether the guest may only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// What the guest sees as the disk's serial number: at most 20 printable characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// Whether a machine starts with the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Autostart {
    /// Whether it does.
    #[serde(default)]
    pub enabled: bool,
    /// Lower ones first; those with the same order in the order of their names.
    #[serde(default)]
    pub order: i32,
}

/// What happens when a machine's process ends by a fault: killed, or failed by itself. A guest that powers off,
/// and a machine that somebody stops, stays off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// The machine stays off.
    Never,
    /// It starts again, at most 5 times in 10 minutes.
    #[default]
    OnFailure,
}

/// A machine to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmParams {
    /// Its name, unique in its project.
    pub name: String,
    /// What it shall be.
    pub config: VmConfig,
    /// What only a machine that comes from an image can be given.
    #[serde(default, skip_serializing_if = "InstanceParams::is_default")]
    pub instance: InstanceParams,
    /// Whether to start it at once. The answer then is the operation that does.
    #[serde(default)]
    pub start: bool,
}

impl VmParams {
    /// A machine of this name, which is not started.
    pub fn new(name: impl Into<String>, config: VmConfig) -> VmParams {
        VmParams { name: name.into(), config, instance: InstanceParams::default(), start: false }
    }
}

/// How a machine is made of its image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct InstanceParams {
    /// How it gets its disks.
    pub clone: CloneKind,
    /// Size of its first disk, if larger than the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// What it is given at its first boot: users, files, commands.
    #[serde(skip_serializing_if = "Provision::is_empty")]
    pub provision: Provision,
    /// In which form it finds that at its first boot.
    #[serde(skip_serializing_if = "SeedKind::is_default")]
    pub seed: SeedKind,
    /// Boot it, also where it could go on from a snapshot that an earlier machine of the image left.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
}

impl InstanceParams {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == InstanceParams::default()
    }
}

/// The form of the disk by which a machine learns at its first boot who it is and what it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SeedKind {
    /// For `arnia-agent`, and for cloud-init's NoCloud source.
    #[default]
    NoCloud,
    /// For cloud-init's ConfigDrive source: the form of OpenStack.
    ConfigDrive,
}

impl SeedKind {
    fn is_default(&self) -> bool {
        *self == SeedKind::default()
    }
}

/// How a machine gets the disks of its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CloneKind {
    /// In a moment, whatever their size: sharing what it does not change.
    #[default]
    Linked,
    /// With a copy of its own of everything.
    Full,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Its identity, a UUID; also the guest's.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// What it does now.
    pub state: VmState,
    /// Why it is in this state, if there is a reason to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it shall be.
    pub config: VmConfig,
    /// The image that it comes from, by its content: names may mean others later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Whether it runs with an older configuration than this, until it starts anew.
    pub restart_needed: bool,
    /// When it was created.
    pub created: Time,
    /// When it was last started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// Its process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerView>,
    /// What the agent in the guest last told, while the machine runs and has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// Changes with every change of the configuration; also in the header `ETag`.
    pub revision: i64,
}

/// The process that runs a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerView {
    /// Its process ID.
    pub pid: u32,
    /// Version of the worker's program.
    pub version: String,
    /// The engine that executes guest code.
    pub engine: String,
    /// The CPU model that the guest sees.
    pub cpu_model: String,
    /// Ports of the host that it has chosen itself, for rules with port 0, as they are open now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chosen_ports: Vec<Port>,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It does not run.
    Stopped,
    /// It does not run; its memory is on the host's disk, and a start lets it go on.
    Suspended,
    /// Its process is being started.
    Starting,
    /// Guest code runs.
    Running,
    /// Guest code and guest time stand still.
    Paused,
    /// The guest was asked to power off.
    Stopping,
    /// It does not run because it could not, or ended by a fault; `reason` says more.
    Failed,
}

impl VmState {
    /// Whether the machine has a process.
    pub fn is_active(self) -> bool {
        !matches!(self, VmState::Stopped | VmState::Suspended | VmState::Failed)
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            VmState::Stopped => "stopped",
            VmState::Suspended => "suspended",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::Stopping => "stopping",
            VmState::Failed => "failed",
        })
    }
}

/// How to stop or restart a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StopParams {
    /// End it at once, whatever the guest does. What the guest has not flushed is lost.
    #[serde(default)]
    pub force: bool,
    /// Seconds that the guest has to power off; 60 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 86400))]
    pub timeout: Option<u32>,
}

/// Most vCPUs of a machine.
const CPUS_MAX: u32 = 255;
const MEMORY_MIN: u64 = 2 << 20;
const MEMORY_MAX: u64 = 1 << 45;

/// Whether a machine can have so many vCPUs and so much memory. The daemon asks this of every configuration, and a client before it
/// begins what takes long.
///
/// # Errors
/// What the daemon answers then.
pub fn check_sizes(cpus: u32, memory: ByteSize) -> Result<(), ApiError> {
    if !(1..=CPUS_MAX).contains(&cpus) {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{cpus} vCPUs cannot be had"))
            .with_remedy(format!("choose 1 to {CPUS_MAX}")));
    }
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory.0) || !memory.0.is_multiple_of(4096) {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{memory} of memory cannot be had"))
            .with_remedy("choose a multiple of 4K from 2M to 32T, like 1G"));
    }
    Ok(())
}

/// Seconds that a guest has to power off when nobody says otherwise.
pub const STOP_TIMEOUT_DEFAULT: u32 = 60;

/// A new name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenameParams {
    /// The new name.
    pub name: String,
}

/// What a machine uses of the host, since its process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmMetrics {
    /// Processor time of its process, in milliseconds.
    pub cpu_time_ms: u64,
    /// Memory of its process that is in the host's RAM, in bytes.
    pub resident_bytes: u64,
    /// Guest time, in milliseconds; stands still while paused.
    pub guest_time_ms: u64,
    /// How many times the guest was reset.
    pub resets: u64,
    /// Counters of the engine and of device accesses.
    pub counters: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_all_that_is_needed() {
        let config: VmConfig = serde_json::from_str(r#"{"boot": {"kernel": "/k"}}"#).unwrap();
        assert_eq!(config, VmConfig::new("/k"));
        let again: VmConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn unknown_fields_are_refused_everywhere() {
        for text in [
            r#"{"boot": {"kernel": "/k"}, "cpu": 2}"#,
            r#"{"boot": {"kernel": "/k", "x": 1}}"#,
            r#"{"boot": {"kernel": "/k"}, "disks": [{"file": "x"}]}"#,
            r#"{"boot": {"kernel": "/k"}, "nics": [{"net": "x"}]}"#,
            r#"{"image": "debian", "instance": {}}"#,
        ] {
            assert!(serde_json::from_str::<VmConfig>(text).is_err(), "{text}");
        }
    }
}
