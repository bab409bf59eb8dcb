//! DHCP server (RFC 2131, options of RFC 2132): message in, message out, no I/O.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{
    DhcpOption, DhcpOptions, Flags, HType, Message, MessageType, Opcode, OptionCode, borrowed,
};
use dhcproto::{Encodable, Encoder, Name};

use super::config::NatSpec;
use super::hosts::Hosts;
use crate::MacAddress;

/// The server's port.
pub(super) const PORT_SERVER: u16 = 67;
/// The client's port.
pub(super) const PORT_CLIENT: u16 = 68;

/// Shortest message that old clients take (RFC 951 §3: 300 bytes).
const LENGTH_MIN: usize = 300;
/// How long an offered address waits for its request.
const OFFER: Duration = Duration::from_secs(60);
/// How long an address is left alone that a guest found in use.
const DECLINED: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Lease {
    /// Whose it is; None for an address that was found in use.
    mac: Option<MacAddress>,
    until: Instant,
}

/// What the server sends.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) message: Vec<u8>,
    /// Where to: a guest's address, or all.
    pub(super) destination: Ipv4Addr,
    pub(super) mac: MacAddress,
    /// Whether a lease was given.
    pub(super) acked: bool,
}

/// The addresses given so far.
#[derive(Debug)]
pub(super) struct DhcpServer {
    /// One place for each address of the pool, in its order.
    leases: Vec<Option<Lease>>,
}

impl DhcpServer {
    pub(super) fn new(spec: &NatSpec) -> Self {
        Self { leases: vec![None; spec.pool.len()] }
    }

    /// Takes a client's message. Returns the answer, if there is one.
    pub(super) fn on_message(
        &mut self,
        spec: &NatSpec,
        hosts: &Hosts,
        frame_source: MacAddress,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Reply> {
        let request = Request::parse(bytes)?;
        let mac = request.mac;
        if mac != frame_source {
            return None;
        }
        let wanted = request.wanted;
        match request.kind {
            MessageType::Discover => {
                let address = self.choose(spec, hosts, mac, wanted, now)?;
                // RFC 4039: two messages instead of four.
                if request.rapid_commit {
                    self.give(spec, address, mac, now + spec.lease);
                    let mut reply = self.reply(spec, hosts, &request, MessageType::Ack, address)?;
                    reply.0.opts_mut().insert(DhcpOption::RapidCommit);
                    return encode(spec, &request, mac, reply);
                }
                self.give(spec, address, mac, now + OFFER);
                let reply = self.reply(spec, hosts, &request, MessageType::Offer, address)?;
                encode(spec, &request, mac, reply)
            }
            MessageType::Request => {
                if request.server.is_some_and(|server| server != spec.gateway) {
                    // It took another server's offer (RFC 2131 §3.1, step 4).
                    self.release(spec, mac, None);
                    return None;
                }
                // Selecting and rebooting clients name the address in an option, renewing ones have it.
                let address = wanted.unwrap_or(request.ciaddr);
                if self.is_available(spec, hosts, address, mac, now) {
                    self.release(spec, mac, Some(address));
                    self.give(spec, address, mac, now + spec.lease);
                    let reply = self.reply(spec, hosts, &request, MessageType::Ack, address)?;
                    encode(spec, &request, mac, reply)
                } else {
                    let reply = self.reply(spec, hosts, &request, MessageType::Nak, Ipv4Addr::UNSPECIFIED)?;
                    encode(spec, &request, mac, reply)
                }
            }
            MessageType::Inform => {
                let reply = self.reply(spec, hosts, &request, MessageType::Ack, Ipv4Addr::UNSPECIFIED)?;
                encode(spec, &request, mac, reply)
            }
            MessageType::Release => {
                self.release(spec, mac, None);
                None
            }
            MessageType::Decline => {
                let place = spec.pool.iter().position(|&address| Some(address) == wanted)?;
                if self.leases[place].is_some_and(|lease| lease.mac == Some(mac)) {
                    self.leases[place] = Some(Lease { mac: None, until: now + DECLINED });
                }
                None
            }
            _ => None,
        }
    }

    /// Chooses an address: the client's own, the one it wants, the first free one, in this order.
    fn choose(
        &self,
        spec: &NatSpec,
        hosts: &Hosts,
        mac: MacAddress,
        wanted: Option<Ipv4Addr>,
        now: Instant,
    ) -> Option<Ipv4Addr> {
        if let Some(host) = hosts.of_card(mac) {
            return Some(host.address);
        }
        let own = self.leases.iter().position(|lease| lease.is_some_and(|lease| lease.mac == Some(mac)));
        if let Some(place) = own {
            return Some(spec.pool[place]);
        }
        wanted
            .filter(|&address| self.is_available(spec, hosts, address, mac, now))
            .or_else(|| {
                // An address never given before one whose lease has run out: its client may come back.
                let mut free = spec.pool.iter().zip(&self.leases).filter(|(_, lease)| lease.is_none());
                free.find(|(address, _)| !hosts.is_kept(**address)).map(|(&address, _)| address)
            })
            .or_else(|| {
                let mut pool = spec.pool.iter().copied();
                pool.find(|&address| self.is_available(spec, hosts, address, mac, now))
            })
    }

    fn is_available(
        &self,
        spec: &NatSpec,
        hosts: &Hosts,
        address: Ipv4Addr,
        mac: MacAddress,
        now: Instant,
    ) -> bool {
        match hosts.of_card(mac) {
            Some(host) => return host.address == address,
            None if hosts.is_kept(address) => return false,
            None => {}
        }
        spec.pool.iter().position(|&other| other == address).is_some_and(|place| {
            self.leases[place].is_none_or(|lease| lease.mac == Some(mac) || lease.until <= now)
        })
    }

    fn give(&mut self, spec: &NatSpec, address: Ipv4Addr, mac: MacAddress, until: Instant) {
        if let Some(place) = spec.pool.iter().position(|&other| other == address) {
            // A client that asks anew keeps what it has until then.
            let until = match self.leases[place] {
                Some(lease) if lease.mac == Some(mac) => lease.until.max(until),
                _ => until,
            };
            self.leases[place] = Some(Lease { mac: Some(mac), until });
        }
    }

    /// Forgets what a client holds, but for one address.
    fn release(&mut self, spec: &NatSpec, mac: MacAddress, keep: Option<Ipv4Addr>) {
        for (lease, &address) in self.leases.iter_mut().zip(&spec.pool) {
            if lease.is_some_and(|lease| lease.mac == Some(mac)) && keep != Some(address) {
                *lease = None;
            }
        }
    }

    /// Makes the answer's fields (RFC 2131 table 3).
    fn reply(
        &self,
        spec: &NatSpec,
        hosts: &Hosts,
        request: &Request,
        kind: MessageType,
        address: Ipv4Addr,
    ) -> Option<(Message, MessageType)> {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootReply)
            .set_htype(HType::Eth)
            .set_xid(request.xid)
            .set_flags(request.flags)
            .set_chaddr(&request.mac.0)
            .set_yiaddr(address);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(spec.gateway));
        if kind == MessageType::Nak {
            options.insert(DhcpOption::Message("this address is not to be had here".into()));
            return Some((message, kind));
        }
        if !address.is_unspecified() {
            let lease = spec.lease.as_secs() as u32;
            options.insert(DhcpOption::AddressLeaseTime(lease));
            options.insert(DhcpOption::Renewal(lease / 2));
            options.insert(DhcpOption::Rebinding((u64::from(lease) * 7 / 8) as u32));
        }
        let hostname = hosts.of_card(request.mac).map(|host| &host.name).or(spec.hostname.as_ref());
        insert_network(spec, hostname, options)?;
        if kind == MessageType::Ack {
            message.set_ciaddr(request.ciaddr);
        }
        Some((message, kind))
    }
}

/// Says what a guest of the network has to know.
fn insert_network(spec: &NatSpec, hostname: Option<&String>, options: &mut DhcpOptions) -> Option<()> {
    options.insert(DhcpOption::SubnetMask(spec.subnet.mask()));
    options.insert(DhcpOption::BroadcastAddr(spec.subnet.broadcast()));
    if spec.default_route {
        options.insert(DhcpOption::Router(vec![spec.gateway]));
    }
    options.insert(DhcpOption::DomainNameServer(vec![spec.dns]));
    options.insert(DhcpOption::InterfaceMtu(spec.mtu));
    if let Some(hostname) = hostname {
        options.insert(DhcpOption::Hostname(hostname.clone()));
    }
    let domains: Vec<_> = spec.domain.iter().chain(&spec.domain_search).collect();
    if let Some(&domain) = domains.first() {
        options.insert(DhcpOption::DomainName(domain.clone()));
        let names: Result<Vec<_>, _> = domains.into_iter().map(Name::from_ascii).collect();
        options.insert(DhcpOption::DomainSearch(names.ok()?));
    }
    Some(())
}

/// What a client's message says, as far as it matters.
#[derive(Debug)]
struct Request {
    kind: MessageType,
    xid: u32,
    flags: Flags,
    ciaddr: Ipv4Addr,
    mac: MacAddress,
    /// The address that it asks for.
    wanted: Option<Ipv4Addr>,
    /// The server that it answers.
    server: Option<Ipv4Addr>,
    rapid_commit: bool,
}

impl Request {
    /// Takes a message apart. Options are looked at one by one and only those that matter: the decoder of all
    /// of them fails by panic on some that are malformed.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let message = borrowed::Message::new(bytes).ok()?;
        // The length is checked before `chaddr` is asked for, which slices by it.
        if message.opcode() != Opcode::BootRequest || message.htype() != HType::Eth || message.hlen() != 6 {
            return None;
        }
        // We are on the link: a relay's message cannot be.
        if !message.giaddr().is_unspecified() {
            return None;
        }
        let mac = MacAddress(message.chaddr().try_into().ok()?);
        let (mut kind, mut wanted, mut server, mut rapid_commit) = (None, None, None, false);
        let address = |data: &[u8]| <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
        for option in message.opts() {
            match option.code() {
                OptionCode::MessageType => kind = option.data().first().map(|&byte| MessageType::from(byte)),
                OptionCode::RequestedIpAddress => wanted = address(option.data()),
                OptionCode::ServerIdentifier => server = address(option.data()),
                OptionCode::RapidCommit => rapid_commit = true,
                _ => {}
            }
        }
        Some(Self {
            kind: kind?,
            xid: message.xid(),
            flags: message.flags(),
            ciaddr: message.ciaddr(),
            mac,
            wanted,
            server,
            rapid_commit,
        })
    }
}

fn encode(
    spec: &NatSpec,
    request: &Request,
    mac: MacAddress,
    (message, kind): (Message, MessageType),
) -> Option<Reply> {
    let mut bytes = Vec::with_capacity(576);
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    if bytes.len() < LENGTH_MIN {
        bytes.resize(LENGTH_MIN, 0);
    }
    if bytes.len() > usize::from(spec.mtu) - 28 {
        return None;
    }
    // RFC 2131 §4.1: to the client's address if it has one, else to the address it gets, unless it cannot take
    // that yet or is refused.
    let (destination, mac) = if kind == MessageType::Nak {
        (Ipv4Addr::BROADCAST, MacAddress::BROADCAST)
    } else if !request.ciaddr.is_unspecified() && spec.is_guest(request.ciaddr) {
        (request.ciaddr, mac)
    } else if request.flags.broadcast() || message.yiaddr().is_unspecified() {
        (Ipv4Addr::BROADCAST, MacAddress::BROADCAST)
    } else {
        (message.yiaddr(), mac)
    };
    Some(Reply { message: bytes, destination, mac, acked: kind == MessageType::Ack })
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder};

    use super::super::config::NatConfig;
    use super::super::hosts::NatHost;
    use super::*;

    fn spec(text: &str) -> NatSpec {
        text.parse::<NatConfig>().unwrap().try_into().unwrap()
    }

    fn mac(last: u8) -> MacAddress {
        MacAddress([0xa6, 0x41, 0x72, 0, 0, last])
    }

    struct Client {
        spec: NatSpec,
        hosts: Hosts,
        server: DhcpServer,
        now: Instant,
    }

    impl Client {
        fn new(text: &str) -> Self {
            let spec = spec(text);
            Self { server: DhcpServer::new(&spec), spec, hosts: Hosts::default(), now: Instant::now() }
        }

        fn send(&mut self, last: u8, ciaddr: Ipv4Addr, options: &[DhcpOption]) -> Option<(Reply, Message)> {
            let mut message = Message::default();
            message.set_chaddr(&mac(last).0).set_ciaddr(ciaddr).set_xid(u32::from(last));
            for option in options {
                message.opts_mut().insert(option.clone());
            }
            let mut bytes = Vec::new();
            message.encode(&mut Encoder::new(&mut bytes)).unwrap();
            let reply = self.server.on_message(&self.spec, &self.hosts, mac(last), &bytes, self.now)?;
            let message = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
            assert_eq!(message.xid(), u32::from(last));
            Some((reply, message))
        }

        fn discover(&mut self, last: u8) -> Option<Ipv4Addr> {
            let (_, message) =
                self.send(last, Ipv4Addr::UNSPECIFIED, &[DhcpOption::MessageType(MessageType::Discover)])?;
            assert_eq!(message.opts().msg_type(), Some(MessageType::Offer));
            Some(message.yiaddr())
        }

        fn request(&mut self, last: u8, address: Ipv4Addr) -> MessageType {
            let options =
                [DhcpOption::MessageType(MessageType::Request), DhcpOption::RequestedIpAddress(address)];
            let (_, message) = self.send(last, Ipv4Addr::UNSPECIFIED, &options).unwrap();
            message.opts().msg_type().unwrap()
        }
    }

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    #[test]
    fn guests_that_are_known_get_their_own_address_and_nobody_else_does() {
        let mut client = Client::new("domain=lab.internal");
        (client.spec.default_route, client.spec.domain) = (false, Some("net.internal".into()));
        let own = Ipv4Addr::new(10, 0, 2, 40);
        let host = |last, address, name: &str| NatHost { mac: mac(last), address, name: name.into() };
        client.hosts = Hosts::new([host(1, own, "one"), host(2, FIRST, "two")]);
        assert_eq!(client.discover(1), Some(own));
        assert_eq!(client.request(1, FIRST), MessageType::Nak, "another's");
        assert_eq!(client.request(1, own), MessageType::Ack);
        // One that is not known gets neither of theirs.
        assert_eq!(client.discover(3), Some(Ipv4Addr::new(10, 0, 2, 16)));
        assert_eq!(client.request(3, own), MessageType::Nak);
        let options = [DhcpOption::MessageType(MessageType::Discover)];
        let (_, message) = client.send(2, Ipv4Addr::UNSPECIFIED, &options).unwrap();
        assert_eq!(message.yiaddr(), FIRST);
        assert_eq!(message.opts().get(OptionCode::Hostname), Some(&DhcpOption::Hostname("two".into())));
        assert_eq!(
            message.opts().get(OptionCode::DomainName),
            Some(&DhcpOption::DomainName("net.internal".into()))
        );
        assert_eq!(message.opts().get(OptionCode::Router), None);
    }

    #[test]
    fn offer_request_renew_with_all_options() {
        let mut client = Client::new("hostname=box,domain=example.test,mtu=1400");
        assert_eq!(client.discover(1), Some(FIRST));
        let options = [
            DhcpOption::MessageType(MessageType::Request),
            DhcpOption::RequestedIpAddress(FIRST),
            DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 2, 2)),
        ];
        let (reply, message) = client.send(1, Ipv4Addr::UNSPECIFIED, &options).unwrap();
        assert_eq!((reply.destination, reply.mac), (FIRST, mac(1)));
        assert!(reply.acked && reply.message.len() >= LENGTH_MIN);
        assert_eq!(message.yiaddr(), FIRST);
        for option in [
            DhcpOption::MessageType(MessageType::Ack),
            DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 2, 2)]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 0, 2, 3)]),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::AddressLeaseTime(86_400),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::Hostname("box".into()),
            DhcpOption::DomainName("example.test".into()),
        ] {
            assert_eq!(message.opts().get(OptionCode::from(&option)), Some(&option));
        }
        let renew = [DhcpOption::MessageType(MessageType::Request)];
        let (reply, message) = client.send(1, FIRST, &renew).unwrap();
        assert_eq!((reply.destination, message.opts().msg_type()), (FIRST, Some(MessageType::Ack)));
    }

    #[test]
    fn each_client_keeps_its_address() {
        let mut client = Client::new("");
        for last in 1..=16 {
            let address = client.discover(last).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 0, 2, 14 + last));
            assert_eq!(client.request(last, address), MessageType::Ack);
        }
        assert_eq!(client.discover(17), None, "the pool is empty");
        assert_eq!(client.request(17, FIRST), MessageType::Nak, "that is another's");
        assert_eq!(client.discover(3), Some(Ipv4Addr::new(10, 0, 2, 17)), "its own again");
        // When leases have run out, the addresses are to be had again.
        client.now += client.spec.lease;
        assert!(client.discover(17).is_some());
    }

    #[test]
    fn release_and_decline() {
        let mut client = Client::new("");
        assert_eq!(client.request(1, FIRST), MessageType::Ack);
        assert!(client.send(1, FIRST, &[DhcpOption::MessageType(MessageType::Release)]).is_none());
        assert_eq!(client.discover(2), Some(FIRST));
        assert_eq!(client.request(2, FIRST), MessageType::Ack);
        let decline = [DhcpOption::MessageType(MessageType::Decline), DhcpOption::RequestedIpAddress(FIRST)];
        assert!(client.send(2, Ipv4Addr::UNSPECIFIED, &decline).is_none());
        assert_eq!(client.discover(2), Some(Ipv4Addr::new(10, 0, 2, 16)));
    }

    #[test]
    fn wrong_network_other_server_inform_and_rapid_commit() {
        let mut client = Client::new("");
        assert_eq!(client.request(1, Ipv4Addr::new(192, 168, 0, 9)), MessageType::Nak);
        let other = [
            DhcpOption::MessageType(MessageType::Request),
            DhcpOption::RequestedIpAddress(FIRST),
            DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 2, 200)),
        ];
        assert!(client.send(1, Ipv4Addr::UNSPECIFIED, &other).is_none());
        let (_, message) = client.send(1, FIRST, &[DhcpOption::MessageType(MessageType::Inform)]).unwrap();
        assert_eq!(message.opts().get(OptionCode::AddressLeaseTime), None);
        assert!(message.opts().contains(OptionCode::Router));
        let rapid = [DhcpOption::MessageType(MessageType::Discover), DhcpOption::RapidCommit];
        let (reply, message) = client.send(1, Ipv4Addr::UNSPECIFIED, &rapid).unwrap();
        assert!(reply.acked && message.opts().contains(OptionCode::RapidCommit));
    }

    #[test]
    fn nonsense_is_not_answered() {
        let mut client = Client::new("");
        let mut message = Message::default();
        message.set_chaddr(&mac(1).0).opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let now = client.now;
        assert!(client.server.on_message(&client.spec, &client.hosts, mac(1), &bytes, now).is_some());
        assert!(
            client.server.on_message(&client.spec, &client.hosts, mac(2), &bytes, now).is_none(),
            "another's name"
        );
        for (place, value) in [(0, 2), (1, 6), (2, 255), (2, 0), (24, 1)] {
            let mut changed = bytes.clone();
            changed[place] = value;
            assert!(
                client.server.on_message(&client.spec, &client.hosts, mac(1), &changed, now).is_none(),
                "byte {place}"
            );
        }
        // Options that the decoder of whole messages panics on.
        for option in [&[94, 1, 0][..], &[121, 5, 200, 1, 2, 3, 4], &[116, 0], &[53, 0], &[50, 3, 1, 2, 3]] {
            let mut changed = bytes.clone();
            changed.pop();
            changed.extend_from_slice(option);
            changed.push(255);
            client.server.on_message(&client.spec, &client.hosts, mac(1), &changed, now);
        }
        for length in 0..240 {
            assert!(
                client
                    .server
                    .on_message(&client.spec, &client.hosts, mac(1), &bytes[..length], now)
                    .is_none()
            );
        }
    }
}
