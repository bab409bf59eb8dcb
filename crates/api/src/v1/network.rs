//! Networks, and how machines are plugged into them.

use super::Time;
use crate::worker::config::RateLimits;
use serde::{Deserialize, Serialize};

/// The network that every project has and nobody can remove: each machine alone behind its own address
/// translation.
pub const USER_NETWORK: &str = "user";

/// Largest IP packet of a network, in bytes, when nobody says otherwise.
pub const MTU_DEFAULT: u16 = 1500;

/// A network of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The project that it belongs to.
    pub project: String,
    /// What it is.
    pub config: NetworkConfig,
    /// The address of the network itself, where it has one: gateway, or DHCP server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The name server's address, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_server: Option<String>,
    /// The cards in it.
    pub cards: Vec<NetworkCard>,
    /// When it was created; absent for the one that is always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// Changes with every change of the configuration; also in the header `ETag`.
    pub revision: i64,
}

/// A card in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkCard {
    /// The machine that it belongs to.
    pub vm: String,
    /// Its name in the machine.
    pub nic: String,
    /// Its MAC address.
    pub mac: String,
    /// Its IPv4 address, where the network gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A network to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkParams {
    /// Its name, unique in its project.
    pub name: String,
    /// What it shall be.
    pub config: NetworkConfig,
}

/// What a network shall be, as users write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Who sees whom.
    pub mode: NetworkMode,
    /// Its IPv4 addresses, like `10.20.0.0/24`; chosen by the daemon when absent, and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Whether machines get their addresses by DHCP.
    #[serde(default = "yes")]
    pub dhcp: bool,
    /// The domain in which machines find each other by name; `NAME.internal` when absent. The name alone does, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Largest IP packet, in bytes.
    #[serde(default = "default_mtu")]
    #[cfg_attr(feature = "openapi", schema(minimum = 576, maximum = 65520))]
    pub mtu: u16,
}

fn yes() -> bool {
    true
}
fn default_mtu() -> u16 {
    MTU_DEFAULT
}

impl NetworkConfig {
    /// A network of this mode, with defaults for all else.
    pub fn new(mode: NetworkMode) -> NetworkConfig {
        NetworkConfig {
            description: String::new(),
            mode,
            subnet: None,
            dhcp: true,
            domain: None,
            mtu: MTU_DEFAULT,
        }
    }
}

/// What a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Each machine alone behind its own address translation, with DHCP, DNS and forwarded ports. Only the network `user`
    /// is of this mode.
    User,
    /// The machines see each other and reach the outside by address translation.
    Nat,
    /// The machines are in the host's network. Not to be had yet.
    Bridged,
    /// The machines see each other and nobody else.
    Internal,
    /// The machines see each other and the host. Not to be had yet.
    HostOnly,
}

impl std::fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            NetworkMode::User => "user",
            NetworkMode::Nat => "nat",
            NetworkMode::Bridged => "bridged",
            NetworkMode::Internal => "internal",
            NetworkMode::HostOnly => "host_only",
        })
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// Its name, unique in the machine; `net0`, `net1`, … when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The network that it is plugged into; `user` by default.
    #[serde(default = "user_network")]
    pub network: String,
    /// Its MAC address; chosen by the daemon when absent, and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The IPv4 address that the network gives it; chosen by the daemon when absent, and kept. Not in the network `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What the guest sees.
    #[serde(default, skip_serializing_if = "NicModel::is_default")]
    pub model: NicModel,
    /// Ports of the host that lead into the guest: `[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]`. Without an address
    /// the host listens on 127.0.0.1 only. In networks of mode `user` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Whether the guest is kept from opening connections. In networks of mode `user` alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restrict: bool,
    /// How fast frames go, in each direction; as fast as they can when absent.
    #[serde(default, skip_serializing_if = "RateLimits::is_none")]
    pub limits: RateLimits,
}

impl NicConfig {
    /// A card in this network, with defaults for all else.
    pub fn of_network(network: impl Into<String>) -> NicConfig {
        NicConfig { network: network.into(), ..NicConfig::default() }
    }
}

/// What a guest sees of a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// A virtio network card.
    #[default]
    Virtio,
}

impl NicModel {
    fn is_default(&self) -> bool {
        *self == NicModel::default()
    }
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
        NicConfig {
            name: None,
            network: user_network(),
            mac: None,
            address: None,
            model: NicModel::default(),
            ports: Vec::new(),
            restrict: false,
            limits: RateLimits::default(),
        }
    }
}
