//! Networks: their records, and which card has which address in them.

use super::App;
use super::people::check_description;
use crate::{Error, util};
use api::v1::error::ErrorCode;
use api::v1::name;
use api::v1::network::{
    Network, NetworkCard, NetworkConfig, NetworkMode, NetworkParams, NicConfig, USER_NETWORK,
};
use api::v1::vm::VmConfig;
use net::{Ipv4Subnet, NatConfig};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use store::{NetworkRecord, Records, VmRecord};

/// Networks that a project may have.
const NETWORKS_MAX: usize = 256;
/// In a subnet, the network's own addresses come first …
const GATEWAY: u32 = 1;
const NAME_SERVER: u32 = 2;
/// … and those of machines behind some that people may give out themselves, where there is room.
const FIRST: u32 = 10;
const FIRST_IN_SMALL: u32 = 3;
/// Subnets that the daemon chooses from: 10.64.0.0/24 to 10.127.255.0/24, which few others use.
const CHOICE: (u32, u32) = (0x0a40_0000, 1 << 14);

/// What is fixed in a network.
pub(super) struct Plan {
    pub(super) subnet: Ipv4Subnet,
    pub(super) gateway: Ipv4Addr,
    pub(super) name_server: Ipv4Addr,
    first: Ipv4Addr,
}

impl Plan {
    pub(super) fn of(config: &NetworkConfig) -> Result<Plan, Error> {
        let invalid = |e: net::NetError| Error::new(ErrorCode::Invalid, e.to_string());
        let subnet: Ipv4Subnet = config.subnet.as_deref().unwrap_or_default().parse().map_err(invalid)?;
        let small = subnet.prefix_len() > 27;
        let plan = Plan {
            subnet,
            gateway: subnet.nth(GATEWAY),
            name_server: subnet.nth(NAME_SERVER),
            first: subnet.nth(if small { FIRST_IN_SMALL } else { FIRST }),
        };
        // What the network's process will be started with, so that it does not fail then.
        let nat = NatConfig {
            subnet,
            gateway: Some(plan.gateway),
            dns: Some(plan.name_server),
            guest: Some(plan.first),
            mtu: config.mtu,
            domain: config.domain.clone(),
            ..NatConfig::default()
        };
        nat.check().map_err(invalid)?;
        Ok(plan)
    }

    /// Whether a machine may have this address.
    fn is_for_machines(&self, address: Ipv4Addr) -> bool {
        self.subnet.contains_station(address) && address != self.gateway && address != self.name_server
    }

    /// The first address that is not among those that are taken.
    fn free(&self, taken: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let last = u32::from(self.subnet.broadcast());
        let own = self.first.into()..last;
        // Where all of those are taken, also those that people give out.
        let others = u32::from(self.subnet.nth(FIRST_IN_SMALL))..self.first.into();
        own.chain(others).map(Ipv4Addr::from).find(|ip| self.is_for_machines(*ip) && !taken.contains(ip))
    }
}

/// The cards that these machines have in a network.
fn cards<'a>(vms: &'a [VmRecord], network: &'a str) -> impl Iterator<Item = (&'a VmRecord, &'a NicConfig)> {
    let of_vm = move |vm: &'a VmRecord| {
        vm.config.nics.iter().filter(move |nic| nic.network == network).map(move |nic| (vm, nic))
    };
    vms.iter().flat_map(of_vm)
}

fn view(network: NetworkRecord, vms: &[VmRecord]) -> Network {
    let plan = Plan::of(&network.config).ok();
    Network {
        cards: card_views(vms, &network.name),
        gateway: plan.as_ref().map(|plan| plan.gateway.to_string()),
        name_server: plan.map(|plan| plan.name_server.to_string()),
        name: network.name,
        project: network.project,
        config: network.config,
        created: Some(network.created),
        revision: network.revision,
    }
}

fn card_views(vms: &[VmRecord], network: &str) -> Vec<NetworkCard> {
    let card = |(vm, nic): (&VmRecord, &NicConfig)| NetworkCard {
        vm: vm.name.clone(),
        nic: nic.name.clone().unwrap_or_default(),
        mac: nic.mac.clone().unwrap_or_default(),
        address: nic.address.clone(),
    };
    cards(vms, network).map(card).collect()
}

/// The network that is always there.
fn user_network(project: &str, vms: &[VmRecord]) -> Network {
    Network {
        name: USER_NETWORK.into(),
        project: project.into(),
        config: NetworkConfig {
            description: "Each machine alone behind its own address translation".into(),
            subnet: Some(NatConfig::default().subnet.to_string()),
            ..NetworkConfig::new(NetworkMode::User)
        },
        gateway: NatConfig::default().addresses().ok().map(|[gateway, _]| gateway.to_string()),
        name_server: NatConfig::default().addresses().ok().map(|[_, dns]| dns.to_string()),
        cards: card_views(vms, USER_NETWORK),
        created: None,
        revision: 1,
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Invalid, message)
}

/// Refuses what no network can be.
fn check(config: &NetworkConfig) -> Result<(), Error> {
    check_description(&config.description)?;
    match config.mode {
        NetworkMode::Nat | NetworkMode::Internal => Ok(()),
        NetworkMode::User => Err(invalid(format!("there is one network of mode user: {USER_NETWORK:?}"))
            .with_remedy("choose nat or internal")),
        NetworkMode::Bridged | NetworkMode::HostOnly => Err(Error::new(
            ErrorCode::Unsupported,
            format!("networks of mode {} are not to be had yet", config.mode),
        )
        .with_remedy("choose nat or internal")),
    }
}

/// Fills in what the daemon chooses and what then stays.
fn complete(records: &Records<'_>, name: &str, config: &mut NetworkConfig) -> Result<(), Error> {
    config.domain.get_or_insert_with(|| format!("{name}.internal"));
    if config.subnet.is_none() {
        let all = records.all_networks()?;
        let taken: HashSet<&str> = all.iter().filter_map(|it| it.config.subnet.as_deref()).collect();
        let (first, count) = CHOICE;
        // Begun at random, so that those of two hosts are seldom the same.
        let begin = u32::from_be_bytes(util::random()) % count;
        let choice = (0..count).map(|n| Ipv4Addr::from(first + (((begin + n) % count) << 8)));
        config.subnet =
            choice.map(|network| format!("{network}/24")).find(|subnet| !taken.contains(subnet.as_str()));
    }
    Plan::of(config).map(drop)
}

impl App {
    /// Networks of a project by name, after the one named.
    pub(crate) fn networks(&self, project: &str, after: &str, limit: u32) -> Result<Vec<Network>, Error> {
        self.read(|records| {
            let vms = records.vms(project, "", u32::MAX)?;
            let made = records.networks(project, after, limit)?;
            let mut all: Vec<_> = made.into_iter().map(|network| view(network, &vms)).collect();
            if after < USER_NETWORK {
                all.push(user_network(project, &vms));
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all.truncate(limit as usize);
            }
            Ok(all)
        })
    }

    /// One network.
    pub(crate) fn network(&self, project: &str, name: &str) -> Result<Network, Error> {
        self.read(|records| {
            let vms = records.vms(project, "", u32::MAX)?;
            match name {
                USER_NETWORK => Ok(user_network(project, &vms)),
                _ => Ok(view(records.network(project, name)?, &vms)),
            }
        })
    }

    /// Makes a network.
    pub(crate) fn network_create(&self, project: &str, params: NetworkParams) -> Result<Network, Error> {
        name::check("network", &params.name)?;
        check(&params.config)?;
        if params.name == USER_NETWORK {
            return Err(Error::new(ErrorCode::AlreadyExists, "the network \"user\" is always there")
                .with_remedy("choose another name"));
        }
        let mut network = NetworkRecord {
            id: util::uuid(),
            project: project.into(),
            name: params.name,
            config: params.config,
            secret: util::random(),
            created: util::now(),
            revision: 1,
        };
        self.write(|records| {
            if records.networks(project, "", u32::MAX)?.len() >= NETWORKS_MAX {
                return Err(invalid(format!("a project has at most {NETWORKS_MAX} networks")));
            }
            complete(records, &network.name, &mut network.config)?;
            records.network_insert(&network)?;
            Ok(view(network, &[]))
        })
    }

    /// Changes a network. What its machines were told cannot change while they are in it.
    pub(crate) fn network_update(
        &self,
        project: &str,
        name: &str,
        change: impl FnOnce(NetworkConfig) -> Result<NetworkConfig, Error>,
        expected: Option<i64>,
    ) -> Result<Network, Error> {
        refuse_user(name, "changed")?;
        self.write(|records| {
            let mut network = records.network(project, name)?;
            let vms = records.vms(project, "", u32::MAX)?;
            let mut config = change(network.config.clone())?;
            check(&config)?;
            complete(records, name, &mut config)?;
            let told =
                |config: &NetworkConfig| NetworkConfig { description: String::new(), ..config.clone() };
            if told(&config) != told(&network.config) {
                refuse_used(&vms, name, "only its description can change while it has cards")?;
            }
            network.config = config;
            network.revision = expected.unwrap_or(network.revision);
            Ok(view(records.network_update(&network)?, &vms))
        })
    }

    /// Removes a network that no machine has a card in.
    pub(crate) fn network_delete(&self, project: &str, name: &str) -> Result<(), Error> {
        refuse_user(name, "removed")?;
        let id = self.write(|records| {
            let network = records.network(project, name)?;
            refuse_used(&records.vms(project, "", u32::MAX)?, name, "it has cards")?;
            records.network_delete(&network.id)?;
            Ok(network.id)
        })?;
        self.forget_switch(&id);
        Ok(())
    }
}

fn refuse_user(name: &str, what: &str) -> Result<(), Error> {
    match name {
        USER_NETWORK => {
            Err(Error::new(ErrorCode::InUse, format!("the network {USER_NETWORK:?} cannot be {what}")))
        }
        _ => Ok(()),
    }
}

fn refuse_used(vms: &[VmRecord], network: &str, why: &str) -> Result<(), Error> {
    let mut users: Vec<&str> = cards(vms, network).map(|(vm, _)| vm.name.as_str()).collect();
    users.dedup();
    if users.is_empty() {
        return Ok(());
    }
    let message = format!("the network {network:?} has cards of {}: {why}", users.join(", "));
    Err(Error::new(ErrorCode::InUse, message).with_remedy("take the cards out of there first"))
}

/// Checks the cards of a machine by themselves.
pub(super) fn check_cards(config: &VmConfig) -> Result<(), Error> {
    let mut names = HashSet::new();
    for nic in &config.nics {
        if let Some(name) = &nic.name {
            name::check("network card", name)?;
            if !names.insert(name) {
                return Err(invalid(format!("two network cards have the name {name:?}")));
            }
        }
        if let Some(mac) = &nic.mac {
            match mac.parse::<net::MacAddress>() {
                Ok(mac) if mac.is_station() => {}
                Ok(mac) => return Err(invalid(format!("{mac} is no address for a network card"))),
                Err(e) => return Err(invalid(e.to_string())),
            }
        }
        if let Some(fault) = nic.limits.fault() {
            return Err(invalid("a network card cannot have these limits").with_cause(fault));
        }
        for port in &nic.ports {
            port.parse::<net::Forward>().map_err(|e| invalid(e.to_string()))?;
        }
        if nic.network == USER_NETWORK && nic.address.is_some() {
            return Err(invalid("a card in the network \"user\" has the address that is the same for all")
                .with_remedy("leave `address` out, or put the card into another network"));
        }
        if nic.network != USER_NETWORK && (!nic.ports.is_empty() || nic.restrict) {
            return Err(invalid(format!("ports and `restrict` are not for the network {:?}", nic.network))
                .with_remedy(format!("give the machine another card, in the network {USER_NETWORK:?}")));
        }
    }
    Ok(())
}

/// Gives the cards of a machine that have none names and MAC addresses.
pub(super) fn complete_cards(config: &mut VmConfig) -> Result<(), Error> {
    let mut names: HashSet<String> = config.nics.iter().filter_map(|nic| nic.name.clone()).collect();
    for nic in &mut config.nics {
        if nic.name.is_none() {
            nic.name = (0..).map(|number| format!("net{number}")).find(|name| names.insert(name.clone()));
        }
        if nic.mac.is_none() {
            let mac = net::MacAddress::random();
            nic.mac =
                Some(mac.map_err(|e| Error::internal("a MAC address is not to be had", e))?.to_string());
        }
    }
    Ok(())
}

/// Finds the networks of a machine's cards, and gives those that have none addresses there. To be called within the
/// transaction that writes the machine.
pub(super) fn assign_addresses(
    records: &Records<'_>,
    project: &str,
    vm: &str,
    config: &mut VmConfig,
) -> Result<(), Error> {
    if config.nics.iter().all(|nic| nic.network == USER_NETWORK) {
        return Ok(());
    }
    let mut others = records.vms(project, "", u32::MAX)?;
    others.retain(|other| other.id != vm);
    for index in 0..config.nics.len() {
        let nic = &config.nics[index];
        if nic.network == USER_NETWORK {
            continue;
        }
        let network = records.network(project, &nic.network).map_err(|_| {
            invalid(format!("there is no network {:?}", nic.network))
                .with_remedy(format!("make it with `arnia network create {}`", nic.network))
        })?;
        let plan = Plan::of(&network.config)?;
        let of_others = cards(&others, &network.name).map(|(_, nic)| nic);
        let own = config
            .nics
            .iter()
            .enumerate()
            .filter(|(at, other)| *at != index && other.network == network.name);
        let all: Vec<&NicConfig> = of_others.chain(own.map(|(_, nic)| nic)).collect();
        let taken: HashSet<Ipv4Addr> =
            all.iter().filter_map(|nic| nic.address.as_deref()?.parse().ok()).collect();
        if all.iter().any(|other| other.mac.is_some() && other.mac == nic.mac) {
            let mac = nic.mac.clone().unwrap_or_default();
            return Err(Error::new(
                ErrorCode::AlreadyExists,
                format!("another card in {} has {mac}", nic.network),
            )
            .with_remedy("leave the MAC address out, and one is chosen"));
        }
        let address = match &nic.address {
            None if !network.config.dhcp => continue,
            None => plan.free(&taken).ok_or_else(|| {
                Error::new(ErrorCode::AlreadyExists, format!("the network {:?} is full", nic.network))
                    .with_remedy("make one with more addresses")
            })?,
            Some(text) => {
                let address = text.parse().ok().filter(|address| plan.is_for_machines(*address));
                let address: Ipv4Addr = address.ok_or_else(|| {
                    invalid(format!("{text:?} is no address for a machine in {}", plan.subnet))
                        .with_remedy("leave it out, and one is chosen")
                })?;
                if taken.contains(&address) {
                    let message = format!("another card in {} has the address {address}", nic.network);
                    return Err(Error::new(ErrorCode::AlreadyExists, message)
                        .with_remedy("leave the address out, and one is chosen"));
                }
                address
            }
        };
        config.nics[index].address = Some(address.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(subnet: &str) -> NetworkConfig {
        NetworkConfig { subnet: Some(subnet.into()), ..NetworkConfig::new(NetworkMode::Internal) }
    }

    #[test]
    fn addresses_are_given_out_until_there_are_none() {
        for (subnet, first, count) in [("10.9.0.0/24", "10.9.0.10", 252), ("10.9.0.0/29", "10.9.0.3", 4)] {
            let plan = Plan::of(&config(subnet)).unwrap_or_else(|e| panic!("{e}"));
            let mut taken = HashSet::new();
            assert_eq!(plan.free(&taken), Some(first.parse().unwrap()), "{subnet}");
            while let Some(address) = plan.free(&taken) {
                assert!(plan.is_for_machines(address) && taken.insert(address), "{address}");
            }
            assert_eq!(taken.len(), count, "{subnet}");
        }
    }

    #[test]
    fn subnets_that_cannot_be_are_refused() {
        for subnet in ["", "10.9.0.0", "10.9.0.1/24", "10.9.0.0/30", "127.0.0.0/24", "224.0.0.0/24"] {
            assert!(Plan::of(&config(subnet)).is_err(), "{subnet}");
        }
        let mtu = NetworkConfig { mtu: 100, ..config("10.9.0.0/24") };
        let domain = NetworkConfig { domain: Some("a b".into()), ..config("10.9.0.0/24") };
        assert!(Plan::of(&mtu).is_err() && Plan::of(&domain).is_err());
    }
}
