//! ICMP (RFC 792): echo, and errors for the guest.
//!
//! Echo requests to our own addresses are answered here. Others leave through the host's unprivileged ping
//! sockets; where the host does not grant those (`net.ipv4.ping_group_range`), the guest is told that the way
//! is administratively closed.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, sockopt};
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet};

use super::core::{Core, Route};
use super::host::{self, Event, QueuedError, Token, Watch};
use super::slab::{Key, Slab};
use super::wire::{self, IPV4, Ipv4, Ipv4Out, PROTOCOL_ICMP, Reject};
use crate::{MacAddress, checksum};

/// Codes of "destination unreachable" (RFC 792, RFC 1812 §5.2.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Unreachable {
    Network = 0,
    Host = 1,
    Protocol = 2,
    Port = 3,
    Prohibited = 13,
}

impl Unreachable {
    /// Returns what an error of a connecting or sending socket means for the guest; None when it says nothing
    /// about the destination.
    pub(super) fn from_host(error: &io::Error) -> Option<Self> {
        use rustix::io::Errno;
        match Errno::from_io_error(error)? {
            Errno::NETUNREACH | Errno::NETDOWN => Some(Self::Network),
            Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Some(Self::Host),
            Errno::CONNREFUSED => Some(Self::Port),
            Errno::ACCESS | Errno::PERM => Some(Self::Prohibited),
            _ => None,
        }
    }
}

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;

/// Length of an ICMP header.
const HEADER: usize = 8;
/// An error quotes as much as fits into this (RFC 1812 §4.3.2.3).
const ERROR_MAX: usize = 576;

/// Echo flows at a time; the one longest unused makes room.
const PINGS_MAX: usize = 64;
/// How long an echo flow is kept that is not used.
const PING_TIMEOUT: Duration = Duration::from_secs(30);
/// Replies taken from one socket before others have their turn.
const REPLIES_MAX: usize = 16;

/// Makes an ICMP message: type, code, the second word, data.
fn message(kind: u8, code: u8, word: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + data.len());
    bytes.extend([kind, code, 0, 0]);
    bytes.extend(word);
    bytes.extend(data);
    let sum = checksum::of(&bytes);
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

/// Tells the sender of a packet that it cannot be delivered.
pub(super) fn unreachable(core: &mut Core, packet: &Ipv4<'_>, code: Unreachable) {
    let from = core.spec.gateway;
    error(core, packet, from, UNREACHABLE, code as u8);
}

/// Tells the sender of a packet that its time to live ended at the gateway.
pub(super) fn time_exceeded(core: &mut Core, packet: &Ipv4<'_>) {
    let from = core.spec.gateway;
    error(core, packet, from, TIME_EXCEEDED, 0);
}

fn error(core: &mut Core, packet: &Ipv4<'_>, from: Ipv4Addr, kind: u8, code: u8) {
    // RFC 1812 §4.3.2.7: never about an error, a later fragment, or something sent to many.
    let about_error = packet.protocol == PROTOCOL_ICMP
        && packet.payload.first().is_none_or(|&kind| kind != ECHO_REQUEST && kind != ECHO_REPLY);
    if about_error || packet.fragment_offset != 0 || !core.spec.is_guest(packet.source) {
        return;
    }
    let mut quote = packet.header.to_vec();
    quote.extend(packet.payload.iter().take(ERROR_MAX - IPV4 - HEADER - packet.header.len()));
    let message = message(kind, code, [0; 4], &quote);
    let link = core.link(packet.source_mac);
    core.queue_ipv4(link, from, packet.source, PROTOCOL_ICMP, &message);
}

/// An error about a packet of which only the essence is still known.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateError {
    pub(super) mac: MacAddress,
    /// Who says so.
    pub(super) from: Ipv4Addr,
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: u8,
}

/// Sends an error about a packet whose transport header, and maybe some payload, was `transport`.
pub(super) fn late_error(core: &mut Core, error: LateError, transport: &[u8]) {
    if !matches!(error.kind, UNREACHABLE | TIME_EXCEEDED) {
        return;
    }
    let mut quote = vec![0; wire::ETHERNET + IPV4];
    let out = Ipv4Out {
        source: error.source,
        destination: error.destination,
        protocol: error.protocol,
        fragment: None,
    };
    let link = core.link(error.mac);
    wire::write_ipv4(&mut quote, link, out, transport.len());
    quote.drain(..wire::ETHERNET);
    quote.extend(transport.iter().take(ERROR_MAX - 2 * IPV4 - HEADER));
    let message = message(error.kind, error.code, [0; 4], &quote);
    core.queue_ipv4(link, error.from, error.source, PROTOCOL_ICMP, &message);
}

/// Sends "destination unreachable" about a packet of which only the essence is still known.
pub(super) fn late_unreachable(core: &mut Core, code: Unreachable, error: LateError, transport: &[u8]) {
    late_error(core, LateError { kind: UNREACHABLE, code: code as u8, ..error }, transport);
}

/// One sender of echo requests in a guest.
#[derive(Debug)]
struct Ping {
    guest: Ipv4Addr,
    ident: u16,
    mac: MacAddress,
    socket: OwnedFd,
    used: Instant,
    ttl: u8,
}

/// Echo requests under way.
#[derive(Debug)]
pub(super) struct PingTable {
    pings: Slab<Ping>,
    by_ident: HashMap<(Ipv4Addr, u16), Key>,
    sweep_at: Option<Instant>,
}

impl PingTable {
    pub(super) fn new() -> Self {
        Self { pings: Slab::new(), by_ident: HashMap::new(), sweep_at: None }
    }

    /// Takes an ICMP message of a guest.
    pub(super) fn on_packet(&mut self, core: &mut Core, ip: &Ipv4<'_>) {
        let Ok(packet) = Icmpv4Packet::new_checked(ip.payload) else {
            return core.drop_frame(Reject::Malformed);
        };
        if checksum::of(ip.payload) != [0, 0] {
            return core.drop_frame(Reject::Malformed);
        }
        // Errors of the guest concern flows whose sockets notice anyway.
        if packet.msg_type() != Icmpv4Message::EchoRequest || packet.msg_code() != 0 {
            return;
        }
        core.counters.icmp_echoes.add(1);
        match core.route(ip.destination) {
            Route::Gateway | Route::Dns => {
                let word = [ip.payload[4], ip.payload[5], ip.payload[6], ip.payload[7]];
                let reply = message(ECHO_REPLY, 0, word, packet.data());
                let link = core.link(ip.source_mac);
                core.queue_ipv4(link, ip.destination, ip.source, PROTOCOL_ICMP, &reply);
            }
            Route::Outside => {
                if let Err(error) = self.forward(core, ip, packet.echo_ident()) {
                    core.counters.drops_denied.add(1);
                    unreachable(core, ip, Unreachable::from_host(&error).unwrap_or(Unreachable::Prohibited));
                }
            }
            Route::Denied => {
                core.counters.drops_denied.add(1);
                unreachable(core, ip, Unreachable::Prohibited);
            }
            Route::Nobody => {}
        }
    }

    fn forward(&mut self, core: &mut Core, ip: &Ipv4<'_>, ident: u16) -> io::Result<()> {
        let key = match self.by_ident.get(&(ip.source, ident)) {
            Some(&key) => key,
            None => self.open(core, ip, ident)?,
        };
        let Some(ping) = self.pings.get_mut(key) else { return Ok(()) };
        ping.used = core.now;
        ping.mac = ip.source_mac;
        let ttl = ip.ttl.saturating_sub(1).max(1);
        if ping.ttl != ttl {
            sockopt::set_ip_ttl(&ping.socket, u32::from(ttl))?;
            ping.ttl = ttl;
        }
        // The kernel puts its own identifier in and computes the sum.
        let to = SocketAddrV4::new(ip.destination, 0);
        match rustix::net::sendto(&ping.socket, ip.payload, SendFlags::empty(), &to) {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn open(&mut self, core: &Core, ip: &Ipv4<'_>, ident: u16) -> io::Result<Key> {
        if self.pings.len() >= PINGS_MAX
            && let Some((oldest, _)) = self.pings.iter().min_by_key(|(_, ping)| ping.used)
        {
            self.remove(oldest);
        }
        let socket = host::ping_socket()?;
        let key = self.pings.insert(Ping {
            guest: ip.source,
            ident,
            mac: ip.source_mac,
            socket,
            used: core.now,
            ttl: 0,
        });
        if let Some(ping) = self.pings.get(key)
            && let Err(error) = core.epoll.add(&ping.socket, Token::Ping(key), Watch::Level)
        {
            self.pings.remove(key);
            return Err(error);
        }
        self.by_ident.insert((ip.source, ident), key);
        self.sweep_at.get_or_insert(core.now + PING_TIMEOUT);
        Ok(key)
    }

    fn remove(&mut self, key: Key) {
        if let Some(ping) = self.pings.remove(key) {
            self.by_ident.remove(&(ping.guest, ping.ident));
        }
    }

    /// Passes replies and errors on to the guest.
    pub(super) fn on_event(&mut self, core: &mut Core, key: Key, event: Event) {
        let Some(ping) = self.pings.get(key) else { return };
        let link = core.link(ping.mac);
        if event.failed {
            while let Some(error) = take_error(core, ping) {
                let from = core.seen_from_guest(SocketAddrV4::new(error.offender, 0).into());
                let late = LateError {
                    mac: ping.mac,
                    from: *from.ip(),
                    kind: error.kind,
                    code: error.code,
                    source: ping.guest,
                    destination: *error.destination.ip(),
                    protocol: PROTOCOL_ICMP,
                };
                let mut quoted = core.scratch[..error.quoted.max(HEADER)].to_vec();
                quoted[4..6].copy_from_slice(&ping.ident.to_be_bytes());
                late_error(core, late, &quoted);
            }
        }
        for _ in 0..REPLIES_MAX {
            let Ok((_, length, from)) =
                rustix::net::recvfrom(&ping.socket, &mut core.scratch[..], RecvFlags::empty())
            else {
                return;
            };
            let Some(from) = from.and_then(|from| SocketAddrV4::try_from(from).ok()) else { continue };
            let bytes = &core.scratch[..length];
            if length < HEADER || bytes[0] != ECHO_REPLY {
                continue;
            }
            let [high, low] = ping.ident.to_be_bytes();
            let reply = message(ECHO_REPLY, 0, [high, low, bytes[6], bytes[7]], &bytes[HEADER..]);
            let source = core.seen_from_guest(from.into());
            core.queue_ipv4(link, *source.ip(), ping.guest, PROTOCOL_ICMP, &reply);
        }
    }

    /// Returns when [`PingTable::on_deadline`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Closes what is not used any more.
    pub(super) fn on_deadline(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let old: Vec<Key> = self
            .pings
            .iter()
            .filter(|(_, ping)| now.saturating_duration_since(ping.used) >= PING_TIMEOUT)
            .map(|(key, _)| key)
            .collect();
        for key in old {
            self.remove(key);
        }
        self.sweep_at = self.pings.iter().map(|(_, ping)| ping.used + PING_TIMEOUT).min();
    }
}

fn take_error(core: &mut Core, ping: &Ping) -> Option<host::IcmpError> {
    core.scratch[..HEADER].fill(0);
    loop {
        match host::take_error(ping.socket.as_fd(), &mut core.scratch) {
            QueuedError::Icmp(error) => return Some(error),
            QueuedError::Other => {}
            QueuedError::Empty => return None,
        }
    }
}
