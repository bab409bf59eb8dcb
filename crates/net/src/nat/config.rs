//! Configuration: [`NatConfig`] as a user writes it, `NatSpec` checked and complete.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use crate::{Forward, MacAddress, NetError, NetErrorKind};

/// Whether the guest may reach the loopback interface of the host through the gateway's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLoopback {
    /// A connection to the gateway's address goes to the same port of the host's 127.0.0.1.
    Allowed,
    /// Connections to the gateway's address are refused.
    Denied,
}

/// Whether the guest may open connections at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// The guest reaches what the host reaches.
    Allowed,
    /// The guest gets an address and reaches nothing: no host, no outside, no names. Forwarded ports still
    /// lead in, and their answers out.
    Restricted,
}

/// Where questions about names go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolvers {
    /// To the servers of the host's `/etc/resolv.conf`, read again whenever the file changes.
    System,
    /// To these servers, tried in this order.
    Fixed(Vec<SocketAddr>),
}

/// An IPv4 network: an address whose host bits are zero, and the number of bits before those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Subnet {
    /// Makes a subnet from its first address and the length of its prefix.
    ///
    /// # Errors
    /// Fails when the prefix is longer than 32 bits or host bits of the address are set.
    pub fn new(network: Ipv4Addr, prefix_len: u8) -> Result<Self, NetError> {
        let refuse = |why: String| Err(NetError::new(NetErrorKind::Syntax, why));
        if prefix_len > 32 {
            return refuse(format!("/{prefix_len} is no prefix length of IPv4: it goes from /0 to /32"));
        }
        let subnet = Self { network, prefix_len };
        let first = Ipv4Addr::from(u32::from(network) & subnet.mask_bits());
        if first != network {
            return refuse(format!(
                "{network}/{prefix_len} is an address inside a network, not the network: write {first}/{prefix_len}"
            ));
        }
        Ok(subnet)
    }

    fn mask_bits(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    /// Returns the first address, which names the network itself.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Returns the number of leading bits that all addresses have in common.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// Returns the netmask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask_bits())
    }

    /// Returns the last address, which reaches all stations.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !self.mask_bits())
    }

    /// Tells whether an address is in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask_bits() == u32::from(self.network)
    }

    /// Tells whether an address is in this network and can belong to a station.
    pub fn contains_station(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.network && address != self.broadcast()
    }

    /// The address at this distance from the first.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network).wrapping_add(n))
    }
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl FromStr for Ipv4Subnet {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let parsed = text.split_once('/').and_then(|(network, length)| {
            Some((network.parse::<Ipv4Addr>().ok()?, length.parse::<u8>().ok()?))
        });
        match parsed {
            Some((network, prefix_len)) => Self::new(network, prefix_len),
            None => Err(NetError::new(
                NetErrorKind::Syntax,
                format!("{text:?} is not an IPv4 network: write it like 10.0.2.0/24"),
            )),
        }
    }
}

/// Bounds on what one guest can make the host hold.
///
/// Whatever they say, flows take no more than half of the descriptors that the process may have when the
/// network is made (`ulimit -n`): raise that limit before, if many connections are to be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatLimits {
    /// TCP connections at a time; further ones are refused with RST. Each holds one descriptor.
    pub tcp_flows_max: usize,
    /// UDP ports of the guest that are mapped at a time; the one longest unused makes room.
    pub udp_flows_max: usize,
    /// Bytes buffered for one TCP connection in each direction; also the largest window offered.
    pub flow_buffer_max: usize,
    /// Bytes buffered for all TCP connections together.
    pub buffer_total_max: usize,
    /// DNS questions waiting for an answer at a time; further ones get SERVFAIL.
    pub dns_in_flight_max: usize,
}

impl Default for NatLimits {
    fn default() -> Self {
        Self {
            tcp_flows_max: 4096,
            udp_flows_max: 1024,
            // Twice what a Linux guest announces before its own buffers grow; more only adds delay, because
            // the far end of the window is the memory of this same machine.
            flow_buffer_max: 1 << 20,
            buffer_total_max: 64 << 20,
            dns_in_flight_max: 256,
        }
    }
}

impl NatLimits {
    /// Lowers the limits so that all flows together take at most half of the descriptors that this process may
    /// have: a guest must not be able to keep its host from opening files.
    pub(super) fn fit(&mut self, descriptors: usize) {
        let budget = (descriptors / 2).max(16);
        let wanted =
            self.tcp_flows_max.saturating_add(self.udp_flows_max).saturating_add(self.dns_in_flight_max);
        if wanted > budget {
            self.tcp_flows_max = self.tcp_flows_max.min(budget * 5 / 8);
            self.udp_flows_max = self.udp_flows_max.min(budget / 4);
            self.dns_in_flight_max = self.dns_in_flight_max.min(budget / 8);
        }
    }
}

/// User-mode networking as a user describes it. The default is the network of QEMU's `-netdev user`:
/// 10.0.2.0/24, gateway .2, name server .3, first guest .15.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// The guest's network.
    pub subnet: Ipv4Subnet,
    /// The router's address, which also stands for the host; second address of the subnet if absent.
    pub gateway: Option<Ipv4Addr>,
    /// The address of the DNS forwarder; third address of the subnet if absent.
    pub dns: Option<Ipv4Addr>,
    /// The first address that DHCP gives; it and up to 15 following ones are the pool. Port forwardings that
    /// name no guest lead to it. Fifteenth address of the subnet if absent (fourth in a small subnet).
    pub guest: Option<Ipv4Addr>,
    /// Largest IP packet, in bytes, told to the guest by DHCP; 576 to 65520.
    pub mtu: u16,
    /// Whether connections to the gateway reach the host's loopback.
    pub host_loopback: HostLoopback,
    /// Whether the guest may open connections at all.
    pub outside: Outside,
    /// Host name told to the guest by DHCP.
    pub hostname: Option<String>,
    /// Domains told to the guest by DHCP, in which it looks up short names; the first is also its own.
    pub domain_search: Vec<String>,
    /// The domain of the guests that are known by name ([`super::Nat::set_hosts`]): names in it are answered here and
    /// never asked elsewhere.
    pub domain: Option<String>,
    /// Whether addresses are given by DHCP.
    pub dhcp: bool,
    /// Whether DHCP names the gateway as the way to everywhere.
    pub default_route: bool,
    /// How long a DHCP lease holds.
    pub lease: Duration,
    /// Where questions about names go.
    pub resolvers: Resolvers,
    /// Ports of the host that lead to the guest from the start.
    pub forwards: Vec<Forward>,
    /// Bounds on what the guest can make the host hold.
    pub limits: NatLimits,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            subnet: Ipv4Subnet { network: Ipv4Addr::new(10, 0, 2, 0), prefix_len: 24 },
            gateway: None,
            dns: None,
            guest: None,
            mtu: 1500,
            host_loopback: HostLoopback::Allowed,
            outside: Outside::Allowed,
            hostname: None,
            domain_search: Vec::new(),
            domain: None,
            dhcp: true,
            default_route: true,
            lease: Duration::from_secs(24 * 3600),
            resolvers: Resolvers::System,
            forwards: Vec::new(),
            limits: NatLimits::default(),
        }
    }
}

/// The options that [`NatConfig`] reads from text, for the message that refuses an unknown one.
const OPTIONS: &str =
    "dns, domain, forward, guest, gateway, hostname, loopback, mtu, nameserver, restrict, subnet";

impl FromStr for NatConfig {
    type Err = NetError;

    /// Reads options separated by commas, each `name=value`:
    ///
    /// - `forward=[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]` (may be repeated; see [`Forward`]);
    /// - `subnet=10.0.2.0/24`, `gateway=`, `dns=`, `guest=` with addresses in it;
    /// - `mtu=1500`; `hostname=NAME`; `domain=NAME` (may be repeated);
    /// - `loopback=on|off`; `restrict=on|off`;
    /// - `nameserver=ADDRESS[:PORT]` instead of the host's own (may be repeated).
    ///
    /// The empty string is the default network.
    fn from_str(text: &str) -> Result<Self, NetError> {
        let mut config = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            config.apply_option(option)?;
        }
        Ok(config)
    }
}

impl NatConfig {
    /// Smallest MTU taken: what every IPv4 host must accept (RFC 791 §3.1).
    pub const MTU_MIN: u16 = MTU_MIN;
    /// Largest MTU taken: an Ethernet frame of it stays below 64 KiB.
    pub const MTU_MAX: u16 = MTU_MAX;

    /// Checks the configuration without opening anything. Returns the address that the first guest gets.
    ///
    /// # Errors
    /// Fails when its parts do not fit together.
    pub fn check(&self) -> Result<Ipv4Addr, NetError> {
        NatSpec::try_from(self.clone()).map(|spec| spec.guest)
    }

    /// The addresses that the network itself has: the gateway's and the name server's.
    ///
    /// # Errors
    /// Fails when its parts do not fit together.
    pub fn addresses(&self) -> Result<[Ipv4Addr; 2], NetError> {
        NatSpec::try_from(self.clone()).map(|spec| [spec.gateway, spec.dns])
    }

    fn apply_option(&mut self, option: &str) -> Result<(), NetError> {
        let syntax = |message: String| NetError::new(NetErrorKind::Syntax, message);
        let (name, value) = option.split_once('=').ok_or_else(|| {
            syntax(format!(
                "network option {option:?} has no value: options are name=value, with the names {OPTIONS}"
            ))
        })?;
        let address = || {
            value.parse::<Ipv4Addr>().map_err(|_| {
                syntax(format!("{name}={value}: {value:?} is not an IPv4 address, for example 10.0.2.2"))
            })
        };
        match name {
            "forward" => self.forwards.push(value.parse()?),
            "subnet" => self.subnet = value.parse()?,
            "gateway" => self.gateway = Some(address()?),
            "dns" => self.dns = Some(address()?),
            "guest" => self.guest = Some(address()?),
            "mtu" => {
                self.mtu = value.parse().map_err(|_| {
                    syntax(format!("mtu={value}: write a number of bytes from {MTU_MIN} to {MTU_MAX}"))
                })?;
            }
            "hostname" => self.hostname = Some(value.to_owned()),
            "domain" => self.domain_search.push(value.to_owned()),
            "loopback" => {
                self.host_loopback =
                    if on_or_off(option, value)? { HostLoopback::Allowed } else { HostLoopback::Denied };
            }
            "restrict" => {
                self.outside = if on_or_off(option, value)? { Outside::Restricted } else { Outside::Allowed };
            }
            "nameserver" => {
                let server = value
                    .parse::<SocketAddr>()
                    .or_else(|_| value.parse().map(|ip| SocketAddr::new(ip, 53)))
                    .map_err(|_| {
                        syntax(format!("nameserver={value}: write an IP address, with :port if it is not 53"))
                    })?;
                match &mut self.resolvers {
                    Resolvers::Fixed(servers) => servers.push(server),
                    Resolvers::System => self.resolvers = Resolvers::Fixed(vec![server]),
                }
            }
            _ => return Err(syntax(format!("there is no network option {name:?}: the names are {OPTIONS}"))),
        }
        Ok(())
    }
}

fn on_or_off(option: &str, value: &str) -> Result<bool, NetError> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(NetError::new(
            NetErrorKind::Syntax,
            format!("{option}: write on or off after the equals sign"),
        )),
    }
}

/// Smallest MTU taken: what every IPv4 host must accept (RFC 791 §3.1).
const MTU_MIN: u16 = 576;
/// Largest MTU taken: an Ethernet frame of it stays below 64 KiB.
const MTU_MAX: u16 = 65_520;

/// Addresses that DHCP gives at most.
const POOL_MAX: u32 = 16;

/// A [`NatConfig`] whose every part is present and fits the others.
#[derive(Clone, Debug)]
pub(super) struct NatSpec {
    pub(super) subnet: Ipv4Subnet,
    pub(super) gateway: Ipv4Addr,
    pub(super) gateway_mac: MacAddress,
    pub(super) dns: Ipv4Addr,
    /// First guest; target of forwardings that name none.
    pub(super) guest: Ipv4Addr,
    /// Addresses for DHCP to give, `guest` first.
    pub(super) pool: Vec<Ipv4Addr>,
    pub(super) mtu: u16,
    pub(super) host_loopback: HostLoopback,
    pub(super) outside: Outside,
    pub(super) hostname: Option<String>,
    pub(super) domain_search: Vec<String>,
    pub(super) domain: Option<String>,
    pub(super) dhcp: bool,
    pub(super) default_route: bool,
    pub(super) lease: Duration,
    pub(super) resolvers: Resolvers,
    pub(super) limits: NatLimits,
}

impl NatSpec {
    /// Tells whether an address is one that we answer for ourselves.
    pub(super) fn is_own(&self, address: Ipv4Addr) -> bool {
        address == self.gateway || address == self.dns
    }

    /// Tells whether an address in the guest's network can be a guest's.
    pub(super) fn is_guest(&self, address: Ipv4Addr) -> bool {
        self.subnet.contains_station(address) && !self.is_own(address)
    }

    /// Checks a port forwarding against the network.
    pub(super) fn check_forward(&self, forward: &Forward) -> Result<(), NetError> {
        match forward.guest_address {
            Some(guest) if !self.is_guest(guest) => Err(config_error(format!(
                "port forwarding {forward}: {guest} cannot be a guest's address in {}: leave it out for {}, or name another",
                self.subnet, self.guest
            ))),
            _ => Ok(()),
        }
    }
}

fn config_error(message: String) -> NetError {
    NetError::new(NetErrorKind::Config, message)
}

impl TryFrom<NatConfig> for NatSpec {
    type Error = NetError;

    fn try_from(config: NatConfig) -> Result<Self, NetError> {
        let subnet = config.subnet;
        if !(8..=29).contains(&subnet.prefix_len) {
            return Err(config_error(format!(
                "subnet {subnet}: the prefix must be between /8 and /29, so that gateway, name server and guest have room"
            )));
        }
        let first = subnet.network;
        if first.is_loopback()
            || first.is_multicast()
            || first.is_link_local()
            || first.octets()[0] == 0
            || first.octets()[0] >= 240
        {
            return Err(config_error(format!(
                "subnet {subnet}: guests cannot have addresses there; take a private network such as 10.0.2.0/24"
            )));
        }
        let gateway = config.gateway.unwrap_or(subnet.nth(2));
        let dns = config.dns.unwrap_or(subnet.nth(3));
        let guest = config.guest.unwrap_or(subnet.nth(if subnet.prefix_len <= 27 { 15 } else { 4 }));
        for (name, address) in [("gateway", gateway), ("name server", dns), ("guest", guest)] {
            if !subnet.contains_station(address) {
                return Err(config_error(format!(
                    "{name} address {address} cannot be a station's in {subnet}: choose one from {} to {}",
                    subnet.nth(1),
                    Ipv4Addr::from(u32::from(subnet.broadcast()) - 1)
                )));
            }
        }
        if gateway == dns || gateway == guest || dns == guest {
            return Err(config_error(format!(
                "gateway {gateway}, name server {dns} and guest {guest} must be three different addresses"
            )));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&config.mtu) {
            return Err(config_error(format!(
                "mtu {} is out of range: choose {MTU_MIN} to {MTU_MAX} bytes",
                config.mtu
            )));
        }
        for name in config.hostname.iter().chain(&config.domain_search).chain(&config.domain) {
            if !is_host_name(name) {
                return Err(config_error(format!(
                    "{name:?} is not a host or domain name: use letters, digits and hyphens, with dots between parts"
                )));
            }
        }
        if let Resolvers::Fixed(servers) = &config.resolvers
            && servers.is_empty()
        {
            return Err(config_error(
                "the list of name servers is empty: name one, or use the host's own".into(),
            ));
        }
        let limits = config.limits;
        if limits.tcp_flows_max == 0 || limits.udp_flows_max == 0 || limits.dns_in_flight_max == 0 {
            return Err(config_error("a limit of zero flows leaves no network: restrict it instead".into()));
        }
        if limits.flow_buffer_max < super::tcp::FLOW_BUFFER_MIN
            || limits.buffer_total_max < limits.flow_buffer_max
        {
            return Err(config_error(format!(
                "buffers are too small: at least {} bytes for each flow, and not less for all together",
                super::tcp::FLOW_BUFFER_MIN
            )));
        }

        let pool = (0..POOL_MAX)
            .map(|n| Ipv4Addr::from(u32::from(guest).wrapping_add(n)))
            .filter(|&address| subnet.contains_station(address) && address != gateway && address != dns)
            .collect();
        let spec = Self {
            subnet,
            gateway,
            gateway_mac: MacAddress::of_router(gateway),
            dns,
            guest,
            pool,
            mtu: config.mtu,
            host_loopback: config.host_loopback,
            outside: config.outside,
            hostname: config.hostname,
            domain_search: config.domain_search,
            domain: config.domain.map(|domain| domain.to_ascii_lowercase()),
            dhcp: config.dhcp,
            default_route: config.default_route,
            // A lease is a 32-bit number of seconds (RFC 2132 §9.2) and below a minute makes only noise.
            lease: config.lease.clamp(Duration::from_secs(60), Duration::from_secs(u64::from(u32::MAX))),
            resolvers: config.resolvers,
            limits,
        };
        for forward in &config.forwards {
            spec.check_forward(forward)?;
        }
        Ok(spec)
    }
}

/// Tells whether text is a host name (RFC 1123 §2.1), or several labels of one.
fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<NatSpec, NetError> {
        text.parse::<NatConfig>().and_then(NatSpec::try_from)
    }

    #[test]
    fn default_is_qemus_user_network() {
        let spec = spec("").unwrap();
        assert_eq!(spec.gateway, Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(spec.dns, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(spec.guest, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(spec.subnet.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(spec.subnet.broadcast(), Ipv4Addr::new(10, 0, 2, 255));
        assert_eq!(spec.pool.len(), 16);
        assert_eq!(spec.pool[0], spec.guest);
    }

    #[test]
    fn options_are_read() {
        let text = "forward=2222:22,forward=8080:80/udp,subnet=192.168.7.0/28,mtu=9000,hostname=box,domain=a.example,\
                    loopback=off,restrict=on,nameserver=192.0.2.1,nameserver=[2001:db8::1]:5353";
        let config: NatConfig = text.parse().unwrap();
        assert_eq!(config.forwards.len(), 2);
        assert_eq!(config.host_loopback, HostLoopback::Denied);
        assert_eq!(config.outside, Outside::Restricted);
        assert_eq!(
            config.resolvers,
            Resolvers::Fixed(vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:5353".parse().unwrap()])
        );
        let spec = NatSpec::try_from(config).unwrap();
        assert_eq!(spec.guest, Ipv4Addr::new(192, 168, 7, 4));
        // The pool ends where the subnet does.
        assert_eq!(spec.pool.last(), Some(&Ipv4Addr::new(192, 168, 7, 14)));
        assert_eq!(spec.mtu, 9000);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        for (text, needle) in [
            ("bogus=1", "no network option"),
            ("forward", "no value"),
            ("mtu=big", "number of bytes"),
            ("mtu=100", "out of range"),
            ("subnet=10.0.2.5/24", "write 10.0.2.0/24"),
            ("subnet=10.0.2.0", "like 10.0.2.0/24"),
            ("subnet=10.0.2.0/40", "prefix length"),
            ("subnet=10.0.2.0/30", "between /8 and /29"),
            ("subnet=127.0.0.0/8", "private network"),
            ("subnet=169.254.0.0/16", "private network"),
            ("gateway=10.0.3.2", "10.0.2.1 to 10.0.2.254"),
            ("gateway=10.0.2.255", "10.0.2.1 to 10.0.2.254"),
            ("gateway=10.0.2.3", "different addresses"),
            ("guest=ten", "not an IPv4 address"),
            ("hostname=bad name", "letters, digits"),
            ("restrict=maybe", "on or off"),
            ("nameserver=here", "IP address"),
            ("forward=22:10.0.2.3:22", "cannot be a guest's address"),
            ("forward=22:192.168.0.1:22", "cannot be a guest's address"),
        ] {
            let error = spec(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.to_string().contains(needle), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_checked() {
        let mut config = NatConfig::default();
        config.limits.tcp_flows_max = 0;
        assert!(NatSpec::try_from(config).is_err());
        let mut config = NatConfig::default();
        config.limits.buffer_total_max = 1;
        assert!(NatSpec::try_from(config).is_err());
    }

    #[test]
    fn limits_fit_the_descriptors() {
        for (descriptors, expected) in [
            (1 << 20, (4096, 1024, 256)),
            (1024, (320, 128, 64)),
            (0, (10, 4, 2)),
            (usize::MAX, (4096, 1024, 256)),
        ] {
            let mut limits = NatLimits::default();
            limits.fit(descriptors);
            assert_eq!((limits.tcp_flows_max, limits.udp_flows_max, limits.dns_in_flight_max), expected);
        }
    }

    #[test]
    fn subnet_arithmetic_at_the_edges() {
        let all = Ipv4Subnet::new(Ipv4Addr::UNSPECIFIED, 0).unwrap();
        assert!(all.contains(Ipv4Addr::new(1, 2, 3, 4)));
        let one = Ipv4Subnet::new(Ipv4Addr::new(1, 2, 3, 4), 32).unwrap();
        assert_eq!(one.broadcast(), Ipv4Addr::new(1, 2, 3, 4));
        assert!(!one.contains_station(Ipv4Addr::new(1, 2, 3, 4)));
    }
}
