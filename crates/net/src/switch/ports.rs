//! Who may be plugged in.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::{MacAddress, NatHost, NetError, NetErrorKind};

/// The secret by which a card is let into its network. Shown by nothing but [`PortKey::to_hex`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortKey(pub [u8; 32]);

impl PortKey {
    /// As [`PortKey::from_str`] reads it.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortKey(secret)")
    }
}

impl FromStr for PortKey {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        // What was given is not repeated: it may be a secret but for a slip.
        let bad = || {
            NetError::new(
                NetErrorKind::Syntax,
                "the key of a port is 64 hexadecimal digits; write it as the daemon gave it",
            )
        };
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut key = [0; 32];
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(key))
    }
}

/// A card that may be plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchPort {
    /// Its secret.
    pub key: PortKey,
    /// The address that all its frames come from.
    pub mac: MacAddress,
    /// The IPv4 address that DHCP gives it, and that no other port may use.
    pub address: Option<Ipv4Addr>,
    /// The name that the others find it by: the machine's.
    pub name: String,
}

/// All cards that may be plugged in.
#[derive(Debug, Default)]
pub(super) struct Ports {
    by_key: HashMap<PortKey, SwitchPort>,
    /// Addresses that belong to a port.
    taken: HashSet<Ipv4Addr>,
}

impl Ports {
    pub(super) fn new(ports: impl IntoIterator<Item = SwitchPort>) -> Self {
        let by_key: HashMap<_, _> = ports.into_iter().map(|port| (port.key, port)).collect();
        let taken = by_key.values().filter_map(|port| port.address).collect();
        Self { by_key, taken }
    }

    pub(super) fn get(&self, key: &PortKey) -> Option<&SwitchPort> {
        self.by_key.get(key)
    }

    pub(super) fn is_taken(&self, address: Ipv4Addr) -> bool {
        self.taken.contains(&address)
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = NatHost> {
        // In an order, so that of two cards with one name it is always the same that is found.
        let mut ports: Vec<_> = self.by_key.values().collect();
        ports.sort_by_key(|port| (port.address, port.mac));
        ports.into_iter().filter_map(|port| {
            Some(NatHost { mac: port.mac, address: port.address?, name: port.name.clone() })
        })
    }
}
