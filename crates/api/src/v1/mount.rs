//! Folders of the host that guests see.

use serde::{Deserialize, Serialize};

/// Folders that one machine can be shown.
pub const MOUNTS_MAX: usize = 32;

/// A folder of the host, and where the guest has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    /// The folder, as an absolute path of the host. Only for admins.
    pub folder: String,
    /// Where the guest has it: an absolute path, which is made if it is not there.
    pub target: String,
    /// Whether the guest may only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Who owns the files in the guest that belong to the daemon's user on the host: `UID` or `UID:GID`. Default: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What it is called where somebody mounts the device by hand. Chosen by the daemon when absent, and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A folder of the host that a machine is shown, and whether its guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Mount {
    /// What it is.
    pub config: MountConfig,
    /// Whether the guest has it.
    pub state: MountState,
    /// Why it has it not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a guest has a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MountState {
    /// The machine is off; it is mounted at the next start.
    Off,
    /// It is shown, and the guest's agent has not mounted it yet.
    Waiting,
    /// It is mounted.
    Mounted,
    /// The guest's agent could not mount it.
    Failed,
}

impl std::fmt::Display for MountState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MountState::Off => "off",
            MountState::Waiting => "waiting",
            MountState::Mounted => "mounted",
            MountState::Failed => "failed",
        })
    }
}

impl MountConfig {
    /// User and group of [`MountConfig::owner`]; `None` when it is not as it should be.
    pub fn owner_ids(&self) -> Option<(u32, u32)> {
        let Some(owner) = &self.owner else { return Some((0, 0)) };
        let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        match owner.split_once(':') {
            Some((uid, gid)) => Some((id(uid)?, id(gid)?)),
            None => id(owner).map(|id| (id, id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read() {
        let ids =
            |owner: &str| MountConfig { owner: Some(owner.into()), ..MountConfig::default() }.owner_ids();
        assert_eq!(MountConfig::default().owner_ids(), Some((0, 0)));
        assert_eq!(ids("1000"), Some((1000, 1000)));
        assert_eq!(ids("1000:50"), Some((1000, 50)));
        for text in ["", "a", "1:", ":1", "-1", "4294967295", "1:2:3"] {
            assert_eq!(ids(text), None, "{text:?}");
        }
    }
}
