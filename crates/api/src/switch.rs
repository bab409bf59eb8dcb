//! What the process of a network is started with, and reads again when the daemon has written it anew.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The switch of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchConfig {
    /// For people: project and name.
    pub name: String,
    /// The socket that cards come in by.
    pub socket: PathBuf,
    /// The network's IPv4 addresses.
    pub subnet: String,
    /// Its own address.
    pub gateway: String,
    /// The name server's.
    pub name_server: String,
    /// The domain of its machines.
    pub domain: String,
    /// Whether addresses are given by DHCP.
    pub dhcp: bool,
    /// Whether the outside is reached by address translation.
    pub outside: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Who may be plugged in.
    pub ports: Vec<SwitchPortConfig>,
}

/// A card that may be plugged in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchPortConfig {
    /// Identity of the machine that it belongs to.
    pub vm: String,
    /// The machine's name.
    pub name: String,
    /// The secret by which it is let in, as 64 hexadecimal digits.
    pub key: String,
    /// Its MAC address.
    pub mac: String,
    /// Its IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl std::fmt::Debug for SwitchPortConfig {
    /// Without the key: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SwitchPortConfig { vm, name, key: _, mac, address } = self;
        f.debug_struct("SwitchPortConfig")
            .field("vm", vm)
            .field("name", name)
            .field("mac", mac)
            .field("address", address)
            .finish_non_exhaustive()
    }
}
