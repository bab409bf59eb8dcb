//! Networks, and how machines are plugged into them.

use super::Time;
use serde::{Deserialize, Serialize};

/// The network that every project has and nobody can remove: each machine alone behind its own address
/// translation.
pub const USER_NETWORK: &str = "user";

/// A network of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// For people.
    pub description: String,
    /// What it is.
    pub mode: NetworkMode,
    /// Machines with a card in it.
    pub vms: Vec<String>,
    /// When it was created; absent for the one that is always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
}

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Each machine alone behind its own address translation, with DHCP, DNS and forwarded ports.
    User,
    /// The machines see each other and reach the outside by address translation.
    Nat,
    /// The machines are in the host's network.
    Bridged,
    /// The machines see each other and nobody else.
    Internal,
    /// The machines see each other and the host.
    HostOnly,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// The network that it is plugged into; `user` by default.
    #[serde(default = "user_network")]
    pub network: String,
    /// Its MAC address; chosen by the daemon when absent, and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Ports of the host that lead into the guest: `[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]`. Without an address
    /// the host listens on 127.0.0.1 only. In networks of mode `user` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Whether the guest is kept from opening connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restrict: bool,
}

/// A port of the host that leads into a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// `[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]`, as in [`NicConfig::ports`].
    pub rule: String,
    /// The network card, counted from 0.
    #[serde(default)]
    pub nic: usize,
}

fn user_network() -> String {
    USER_NETWORK.into()
}

impl Default for NicConfig {
    fn default() -> NicConfig {
        NicConfig { network: user_network(), mac: None, ports: Vec::new(), restrict: false }
    }
}
