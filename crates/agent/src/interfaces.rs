//! Network cards and their addresses.

use std::collections::BTreeMap;
use std::io;

use api::agent::Interface;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

pub(crate) fn list() -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    for entry in getifaddrs()? {
        let name = entry.interface_name;
        let interface = found.entry(name.clone()).or_insert_with(|| Interface {
            name,
            mac: None,
            up: entry.flags.contains(InterfaceFlags::IFF_UP),
            addresses: Vec::new(),
        });
        let Some(address) = entry.address else { continue };
        let mask = entry.netmask;
        if let Some(mac) = address.as_link_addr().and_then(|link| link.addr()) {
            interface.mac = Some(mac.map(|byte| format!("{byte:02x}")).join(":"));
        } else if let Some(ip) = address.as_sockaddr_in() {
            let mask = mask.and_then(|mask| Some(u32::from(mask.as_sockaddr_in()?.ip())));
            interface.addresses.push(format!("{}/{}", ip.ip(), mask.unwrap_or(u32::MAX).leading_ones()));
        } else if let Some(ip) = address.as_sockaddr_in6() {
            let mask = mask.and_then(|mask| Some(u128::from(mask.as_sockaddr_in6()?.ip())));
            interface.addresses.push(format!("{}/{}", ip.ip(), mask.unwrap_or(u128::MAX).leading_ones()));
        }
    }
    Ok(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address() {
        let all = list().expect("a list");
        let loopback = all.iter().find(|interface| interface.name == "lo").expect("a loopback");
        assert!(
            loopback.addresses.is_empty() || loopback.addresses.contains(&"127.0.0.1/8".to_owned()),
            "{all:?}"
        );
    }
}
