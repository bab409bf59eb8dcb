//! The guests of a network that are known by name: what address each gets, and what others find it by.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::MacAddress;

/// A guest that is known before it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatHost {
    /// Its card.
    pub mac: MacAddress,
    /// The address that DHCP gives it, and only it.
    pub address: Ipv4Addr,
    /// Its name, without a domain.
    pub name: String,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_mac: HashMap<MacAddress, NatHost>,
    by_name: HashMap<String, Ipv4Addr>,
}

impl Hosts {
    pub(super) fn new(hosts: impl IntoIterator<Item = NatHost>) -> Self {
        let mut all = Self::default();
        for host in hosts {
            // A machine with several cards is found by the first.
            all.by_name.entry(host.name.to_ascii_lowercase()).or_insert(host.address);
            all.by_mac.insert(host.mac, host);
        }
        all
    }

    pub(super) fn of_card(&self, mac: MacAddress) -> Option<&NatHost> {
        self.by_mac.get(&mac)
    }

    /// Whether this address is kept for one of them.
    pub(super) fn is_kept(&self, address: Ipv4Addr) -> bool {
        self.by_mac.values().any(|host| host.address == address)
    }

    /// The address of a name in lower case, alone or in the domain of the network.
    pub(super) fn named(&self, name: &str, domain: Option<&str>) -> Option<Ipv4Addr> {
        let short = domain.and_then(|domain| name.strip_suffix(domain)?.strip_suffix('.'));
        self.by_name.get(short.unwrap_or(name)).copied()
    }
}
