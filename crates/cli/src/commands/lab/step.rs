//! One thing to do, and how people are told of it.

use api::v1::network::NetworkParams;
use api::v1::storage::VolumeParams;
use api::v1::vm::VmConfig;
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Step {
    CreateVolume {
        volume: VolumeParams,
    },
    CreateNetwork {
        network: NetworkParams,
    },
    /// A merge patch (RFC 7396) of the configuration.
    ChangeNetwork {
        network: String,
        revision: i64,
        patch: Value,
    },
    CreateVm {
        vm: String,
        config: Box<VmConfig>,
        start: bool,
    },
    /// A merge patch (RFC 7396) of the configuration.
    ChangeVm {
        vm: String,
        revision: i64,
        patch: Value,
        /// Whether it runs, and shall.
        running: bool,
        /// Whether it will run with less than its configuration says until it is restarted, as far as is known
        /// before the daemon has the change.
        restart_needed: bool,
    },
    /// The configuration is as it shall be, and the machine runs with an older one. Only done if restarts are asked for.
    RestartVm {
        vm: String,
    },
    StartVm {
        vm: String,
    },
    StopVm {
        vm: String,
    },
    RemoveVm {
        vm: String,
    },
}

impl Step {
    /// What it is about.
    pub(super) fn subject(&self) -> String {
        match self {
            Step::CreateVolume { volume } => format!("volume {}", volume.name),
            Step::CreateNetwork { network } => format!("network {}", network.name),
            Step::ChangeNetwork { network, .. } => format!("network {network}"),
            Step::CreateVm { vm, .. }
            | Step::ChangeVm { vm, .. }
            | Step::RestartVm { vm }
            | Step::StartVm { vm }
            | Step::StopVm { vm }
            | Step::RemoveVm { vm } => format!("machine {vm}"),
        }
    }

    /// Whether something ends by it.
    pub(super) fn loses(&self) -> bool {
        matches!(self, Step::StopVm { .. } | Step::RemoveVm { .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::CreateVolume { volume } => write!(f, "+ volume {} ({})", volume.name, volume.size),
            Step::CreateNetwork { network } => {
                let subnet = network.config.subnet.as_deref().map_or(String::new(), |it| format!(", {it}"));
                write!(f, "+ network {} ({}{subnet})", network.name, network.config.mode)
            }
            Step::ChangeNetwork { network, patch, .. } => {
                write!(f, "~ network {network}")?;
                patch
                    .as_object()
                    .into_iter()
                    .flatten()
                    .try_for_each(|(field, value)| write!(f, "\n    {field}: {value}"))
            }
            Step::CreateVm { vm, config, start } => {
                let then = if *start { ", started" } else { "" };
                write!(f, "+ machine {vm} ({} vCPUs, {}{then})", config.cpus, config.memory)
            }
            Step::ChangeVm { vm, patch, restart_needed, .. } => {
                write!(f, "~ machine {vm}")?;
                for (field, value) in patch.as_object().into_iter().flatten() {
                    write!(f, "\n    {field}: {value}")?;
                }
                if *restart_needed { write!(f, "\n    (it runs: has it after a restart)") } else { Ok(()) }
            }
            Step::RestartVm { vm } => {
                write!(
                    f,
                    "~ machine {vm}\n    (it runs with an older configuration: has this one after a restart)"
                )
            }
            Step::StartVm { vm } => write!(f, "> start machine {vm}"),
            Step::StopVm { vm } => write!(f, "x stop machine {vm}"),
            Step::RemoveVm { vm } => write!(f, "- machine {vm}"),
        }
    }
}
