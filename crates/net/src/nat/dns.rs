//! DNS forwarder (RFC 1035): questions of the guest go to the host's name servers.
//!
//! Each question travels on a socket of its own with an identifier of ours, so that neither the guest's choice
//! of identifiers nor a stranger's guess decides what comes back (RFC 5452 §9.2). A few names are answered
//! here: [`HOST_NAME`] and [`GATEWAY_NAME`] are the gateway's address.
//!
//! TCP questions are not looked into: such a connection is spliced to the first name server like any other.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::{RecvFlags, SendFlags};
use smoltcp::wire::{DnsPacket, DnsQuestion};

use super::config::{Outside, Resolvers};
use super::core::Core;
use super::host::{self, Token, Watch};
use super::slab::{Key, Slab};
use super::wire::UdpIn;
use crate::MacAddress;

/// The port of DNS.
pub(super) const PORT: u16 = 53;

/// The domain whose names are answered here and never asked elsewhere.
const LOCAL_DOMAIN: &str = "arnia.internal";
/// The name under which a guest finds its host.
pub const HOST_NAME: &str = "host.arnia.internal";
/// The name under which a guest finds its gateway.
pub const GATEWAY_NAME: &str = "gateway.arnia.internal";
/// How long the guest may remember them, in seconds.
const LOCAL_TTL: u32 = 60;

/// How long one name server has to answer before the next is asked, and how often one is asked in all. Together
/// less than the five seconds after which resolvers ask again.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ATTEMPTS_MAX: usize = 3;
/// How often the host's configuration is looked at.
const RELOAD: Duration = Duration::from_secs(2);
/// Name servers taken from the host's configuration (resolv.conf(5): MAXNS).
const SERVERS_MAX: usize = 3;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What a host without any entry means (resolv.conf(5)).
const SERVER_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);

/// Length of a DNS header.
const HEADER: usize = 12;
/// Response codes (RFC 1035 §4.1.1).
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

const TYPE_A: u16 = 1;
const TYPE_ANY: u16 = 255;

/// The question of a query.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    /// In lower case, without the last dot.
    name: String,
    kind: u16,
    /// Where the question section ends in the message.
    end: usize,
}

/// Takes the question out of a query; None when it has none, several, or one of an odd class.
fn question(message: &[u8]) -> Option<Question> {
    let packet = DnsPacket::new_checked(message).ok()?;
    if packet.question_count() != 1 {
        return None;
    }
    let (rest, question) = DnsQuestion::parse(packet.payload()).ok()?;
    let mut name = String::new();
    for label in packet.parse_name(question.name) {
        if !name.is_empty() {
            name.push('.');
        }
        let label = label.ok()?;
        name.extend(label.iter().map(|&byte| char::from(byte.to_ascii_lowercase())));
        if name.len() > 255 {
            return None;
        }
    }
    Some(Question { name, kind: question.type_.into(), end: message.len() - rest.len() })
}

/// Makes an answer: the query's header and question, a response code, and maybe one address.
fn answer(query: &[u8], question_end: usize, code: u8, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut message = query[..question_end].to_vec();
    // QR, the query's opcode and RD; RA and the code (RFC 1035 §4.1.1).
    message[2] = 0x80 | (query[2] & 0x79);
    message[3] = 0x80 | code;
    let questions = u16::from(question_end > HEADER);
    message[4..6].copy_from_slice(&questions.to_be_bytes());
    message[6..8].copy_from_slice(&u16::from(address.is_some()).to_be_bytes());
    message[8..12].fill(0);
    if let Some(address) = address {
        message.extend([0xc0, HEADER as u8]); // The name of the question.
        message.extend(TYPE_A.to_be_bytes());
        message.extend(1u16.to_be_bytes());
        message.extend(LOCAL_TTL.to_be_bytes());
        message.extend(4u16.to_be_bytes());
        message.extend(address.octets());
    }
    message
}

/// Answers questions about guests that are known by name, and about all else in their domain.
fn answer_host(query: &[u8], question: &Question, core: &Core) -> Option<Vec<u8>> {
    let domain = core.spec.domain.as_deref();
    let address = core.hosts.named(&question.name, domain);
    let below = domain.and_then(|domain| question.name.strip_suffix(domain));
    let in_domain = below.is_some_and(|below| below.is_empty() || below.ends_with('.'));
    if address.is_none() && !in_domain {
        return None;
    }
    let exists = address.is_some() || below == Some("");
    let address = address.filter(|_| matches!(question.kind, TYPE_A | TYPE_ANY));
    Some(answer(query, question.end, if exists { NO_ERROR } else { NO_SUCH_NAME }, address))
}

/// Answers questions about the local domain.
fn answer_local(query: &[u8], question: &Question, gateway: Ipv4Addr) -> Option<Vec<u8>> {
    let below = question.name.strip_suffix(LOCAL_DOMAIN)?;
    if !below.is_empty() && !below.ends_with('.') {
        return None;
    }
    let known = question.name == HOST_NAME || question.name == GATEWAY_NAME;
    let code = if known || below.is_empty() { NO_ERROR } else { NO_SUCH_NAME };
    let address = (known && matches!(question.kind, TYPE_A | TYPE_ANY)).then_some(gateway);
    Some(answer(query, question.end, code, address))
}

/// Tells whether a message is the answer to a query of ours.
fn is_answer(query: &[u8], question_end: usize, message: &[u8]) -> bool {
    message.len() >= question_end.max(HEADER)
        && message[..2] == query[..2]
        && message[2] & 0x80 != 0
        // Some servers leave out the question when they refuse.
        && (message[4..6] == [0, 0] || message[HEADER..question_end].eq_ignore_ascii_case(&query[HEADER..question_end]))
}

/// Reads the name servers out of the text of a resolv.conf.
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
        })
        .take(SERVERS_MAX)
        .map(|address| SocketAddr::new(address, PORT))
        .collect();
    if servers.is_empty() {
        servers.push(SERVER_DEFAULT);
    }
    servers
}

/// A question waiting for its answer.
#[derive(Debug)]
struct Query {
    guest: SocketAddrV4,
    /// The address that the guest asked.
    asked: SocketAddrV4,
    mac: MacAddress,
    guest_id: [u8; 2],
    /// As sent, with our identifier.
    message: Vec<u8>,
    question_end: usize,
    attempt: usize,
    socket: Option<OwnedFd>,
    deadline: Instant,
}

/// The forwarder.
#[derive(Debug)]
pub(super) struct DnsForwarder {
    servers: Vec<SocketAddr>,
    checked: Option<Instant>,
    modified: Option<SystemTime>,
    queries: Slab<Query>,
    /// No deadline is earlier than this.
    deadline: Option<Instant>,
}

impl DnsForwarder {
    pub(super) fn new() -> Self {
        Self { servers: Vec::new(), checked: None, modified: None, queries: Slab::new(), deadline: None }
    }

    /// Returns where a TCP connection to the forwarder leads.
    pub(super) fn tcp_server(&mut self, core: &Core) -> Option<SocketAddr> {
        if core.spec.outside == Outside::Restricted {
            return None;
        }
        self.reload(core);
        self.servers.first().copied()
    }

    fn reload(&mut self, core: &Core) {
        match &core.spec.resolvers {
            Resolvers::Fixed(servers) => {
                if self.servers.is_empty() {
                    self.servers.clone_from(servers);
                }
            }
            Resolvers::System => {
                if self.checked.is_some_and(|checked| core.now.saturating_duration_since(checked) < RELOAD) {
                    return;
                }
                self.checked = Some(core.now);
                let modified = fs::metadata(RESOLV_CONF).and_then(|metadata| metadata.modified()).ok();
                if self.servers.is_empty() || (modified.is_some() && modified != self.modified) {
                    self.modified = modified;
                    self.servers = match fs::read_to_string(RESOLV_CONF) {
                        Ok(text) => parse_resolv_conf(&text),
                        // A sandbox may have closed the file since: what was read before still holds.
                        Err(_) if !self.servers.is_empty() => return,
                        Err(_) => vec![SERVER_DEFAULT],
                    };
                }
            }
        }
    }

    /// Takes a question of a guest.
    pub(super) fn on_query(&mut self, core: &mut Core, mac: MacAddress, udp: &UdpIn<'_>) {
        let message = udp.payload;
        if message.len() < HEADER || message[2] & 0x80 != 0 {
            return;
        }
        core.counters.dns_questions.add(1);
        let link = core.link(mac);
        let question = question(message);
        let question_end = question.as_ref().map_or(HEADER, |question| question.end);
        let local = |question: Question| {
            answer_local(message, &question, core.spec.gateway)
                .or_else(|| answer_host(message, &question, core))
        };
        if let Some(reply) = question.and_then(local) {
            return core.queue_udp(link, udp.destination, udp.source, &reply);
        }
        let refusal = if core.spec.outside == Outside::Restricted {
            Some(REFUSED)
        } else if self.queries.len() >= core.spec.limits.dns_in_flight_max {
            Some(SERVER_FAILURE)
        } else {
            None
        };
        if let Some(code) = refusal {
            core.counters.dns_failed.add(1);
            let reply = answer(message, question_end, code, None);
            return core.queue_udp(link, udp.destination, udp.source, &reply);
        }
        let guest_id = [message[0], message[1]];
        let repeated =
            self.queries.iter().any(|(_, query)| query.guest == udp.source && query.guest_id == guest_id);
        if repeated {
            return;
        }
        self.reload(core);
        let mut message = message.to_vec();
        message[..2].copy_from_slice(&crate::random::bytes::<2>().unwrap_or(guest_id));
        let key = self.queries.insert(Query {
            guest: udp.source,
            asked: udp.destination,
            mac,
            guest_id,
            message,
            question_end,
            attempt: 0,
            socket: None,
            deadline: core.now,
        });
        self.ask(core, key);
    }

    /// Asks the next name server, or gives up.
    fn ask(&mut self, core: &mut Core, key: Key) {
        let Some(query) = self.queries.get_mut(key) else { return };
        query.socket = None;
        while query.attempt < ATTEMPTS_MAX.max(self.servers.len()) {
            let server = self.servers[query.attempt % self.servers.len()];
            query.attempt += 1;
            let sent = host::udp_connect(server).and_then(|socket| {
                core.epoll.add(&socket, Token::Dns(key), Watch::Level)?;
                rustix::net::send(&socket, &query.message, SendFlags::empty())?;
                Ok(socket)
            });
            if let Ok(socket) = sent {
                query.socket = Some(socket);
                query.deadline = core.now + ATTEMPT;
                let deadline = self.deadline.map_or(query.deadline, |at| at.min(query.deadline));
                self.deadline = Some(deadline);
                return;
            }
        }
        if let Some(mut query) = self.queries.remove(key) {
            core.counters.dns_failed.add(1);
            query.message[..2].copy_from_slice(&query.guest_id);
            let reply = answer(&query.message, query.question_end, SERVER_FAILURE, None);
            let link = core.link(query.mac);
            core.queue_udp(link, query.asked, query.guest, &reply);
        }
    }

    /// Takes the answer of a name server.
    pub(super) fn on_event(&mut self, core: &mut Core, key: Key) {
        let Some(query) = self.queries.get(key) else { return };
        let Some(socket) = &query.socket else { return };
        match rustix::net::recv(socket, &mut core.scratch[..], RecvFlags::empty()) {
            Ok((_, length)) => {
                let length = length.min(core.scratch.len());
                if !is_answer(&query.message, query.question_end, &core.scratch[..length]) {
                    return;
                }
                let mut reply = core.scratch[..length].to_vec();
                reply[..2].copy_from_slice(&query.guest_id);
                let link = core.link(query.mac);
                let (asked, guest) = (query.asked, query.guest);
                self.queries.remove(key);
                core.queue_udp(link, asked, guest, &reply);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Nobody listens there.
            Err(_) => self.ask(core, key),
        }
    }

    /// Returns when [`DnsForwarder::on_deadline`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Asks other name servers where one has not answered.
    pub(super) fn on_deadline(&mut self, core: &mut Core) {
        if self.deadline.is_none_or(|at| at > core.now) {
            return;
        }
        let late: Vec<Key> =
            self.queries.iter().filter(|(_, query)| query.deadline <= core.now).map(|(key, _)| key).collect();
        for key in late {
            self.ask(core, key);
        }
        self.deadline = self.queries.iter().map(|(_, query)| query.deadline).min();
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::NatConfig;
    use super::super::hosts::{Hosts, NatHost};
    use super::*;

    /// A query as a resolver sends it.
    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(1u16.to_be_bytes());
        message
    }

    #[test]
    fn questions_are_found() {
        let message = query("Www.Example.COM", 28);
        let expected = Question { name: "www.example.com".into(), kind: 28, end: message.len() };
        assert_eq!(question(&message), Some(expected));
        let mut with_more = message.clone();
        with_more.extend([0; 11]);
        assert_eq!(question(&with_more).unwrap().end, message.len());
        for length in 0..message.len() {
            assert_eq!(question(&message[..length]), None);
        }
        let mut two = message.clone();
        two[5] = 2;
        assert_eq!(question(&two), None);
        // A name that points to itself.
        let mut looped = query("", 1);
        looped.splice(12..13, [0xc0, 12]);
        assert_eq!(question(&looped), None);
        assert_eq!(question(&query("", 2)).unwrap().name, "");
    }

    #[test]
    fn local_names() {
        let gateway = Ipv4Addr::new(10, 0, 2, 2);
        for (name, kind, code, answers) in [
            ("host.arnia.internal", 1, Some(0), 1),
            ("HOST.Arnia.Internal", 1, Some(0), 1),
            ("gateway.arnia.internal", 255, Some(0), 1),
            ("host.arnia.internal", 28, Some(0), 0),
            ("arnia.internal", 1, Some(0), 0),
            ("other.arnia.internal", 1, Some(3), 0),
            ("xarnia.internal", 1, None, 0),
            ("arnia.internal.example", 1, None, 0),
            ("example.com", 1, None, 0),
        ] {
            let message = query(name, kind);
            let reply = answer_local(&message, &question(&message).unwrap(), gateway);
            assert_eq!(reply.as_ref().map(|reply| reply[3] & 0xf), code, "{name} {kind}");
            let Some(reply) = reply else { continue };
            assert_eq!(reply[..2], message[..2]);
            assert_eq!((reply[2], reply[3] & 0x80), (0x81, 0x80), "answer, recursion wanted and to be had");
            assert_eq!(reply[7], answers);
            if answers == 1 {
                assert!(reply.ends_with(&gateway.octets()));
            }
            assert!(is_answer(&message, message.len(), &reply));
        }
    }

    #[test]
    fn guests_are_found_by_name_alone_and_in_their_domain() {
        let config = NatConfig { domain: Some("Lab.internal".into()), ..NatConfig::default() };
        let mut core = Core::new(config.try_into().unwrap()).unwrap();
        let address = Ipv4Addr::new(10, 0, 2, 40);
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        core.hosts = Hosts::new([NatHost { mac, address, name: "Web".into() }]);
        for (name, kind, code, found) in [
            ("web", 1, Some(0), true),
            ("WEB.lab.Internal", 1, Some(0), true),
            ("web.lab.internal", 28, Some(0), false),
            ("lab.internal", 1, Some(0), false),
            ("db.lab.internal", 1, Some(3), false),
            ("db", 1, None, false),
            ("web.example.com", 1, None, false),
            ("weblab.internal", 1, None, false),
        ] {
            let message = query(name, kind);
            let reply = answer_host(&message, &question(&message).unwrap(), &core);
            assert_eq!(reply.as_ref().map(|reply| reply[3] & 0xf), code, "{name} {kind}");
            assert_eq!(reply.is_some_and(|reply| reply.ends_with(&address.octets())), found, "{name} {kind}");
        }
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let asked = query("example.com", 1);
        let end = asked.len();
        let good = answer(&asked, end, 0, Some(Ipv4Addr::LOCALHOST));
        assert!(is_answer(&asked, end, &good));
        for place in [0, 1, 13] {
            let mut bad = good.clone();
            bad[place] ^= 0xff;
            assert!(!is_answer(&asked, end, &bad), "byte {place}");
        }
        assert!(!is_answer(&asked, end, &asked), "a question");
        assert!(!is_answer(&asked, end, &good[..11]));
        let other_case = query("EXAMPLE.com", 1);
        assert!(is_answer(&asked, end, &answer(&other_case, end, 0, None)));
    }

    #[test]
    fn failures_keep_the_question() {
        let asked = query("example.com", 1);
        let reply = answer(&asked, asked.len(), SERVER_FAILURE, None);
        assert_eq!(reply[3], 0x82);
        assert_eq!(question(&reply), question(&asked));
        let headless = answer(&asked, HEADER, SERVER_FAILURE, None);
        assert_eq!((headless.len(), headless[5]), (HEADER, 0));
    }

    #[test]
    fn resolv_conf() {
        let text = "# a comment\nsearch example.com\nnameserver 192.0.2.1\n;nameserver 192.0.2.9\n\
                    nameserver  2001:db8::1 \nnameserver fe80::1%eth0\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let servers: Vec<String> = parse_resolv_conf(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
        assert_eq!(parse_resolv_conf("options edns0"), [SERVER_DEFAULT]);
    }
}
