//! UDP (RFC 768): each port of a guest has one port of the host, whatever it talks to.
//!
//! That mapping is endpoint-independent and the filter address-dependent (RFC 4787 §4.1, §5): a guest can be
//! reached through it only by addresses that it has sent to. Replies go from the host's socket straight into
//! the frame when the guest asks for one. ICMP errors come back from the sockets' error queues.
//!
//! Forwarded ports have sockets of their own; a reply of the guest leaves through the one that the question
//! came in by.

use std::collections::{HashMap, VecDeque};
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags, sockopt};

use super::core::{Core, Route};
use super::dns;
use super::host::{self, Event, QueuedError, Token, Watch};
use super::icmp::{self, LateError, Unreachable};
use super::slab::{Key, Slab};
use super::wire::{self, ETHERNET, IPV4, Ipv4, Ipv4Out, Link, PROTOCOL_UDP, UDP, UdpIn};
use crate::MacAddress;

/// How long a mapping is kept that is not used. RFC 4787 §4.3 wants two minutes of routers that many hosts
/// share; here a mapping that is missed is made anew by the guest's next datagram.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a port that has only asked name servers: one answer is all that comes.
const TIMEOUT_DNS: Duration = Duration::from_secs(10);
/// Addresses that one port of the guest may be answered by; the one longest unused makes room.
const PEERS_MAX: usize = 64;
/// Conversations over forwarded ports; the one longest unused makes room.
const SESSIONS_MAX: usize = 1024;
/// Datagrams taken from one socket before others have their turn.
const BURST: u32 = 32;
/// Looks into sockets for one frame.
const ATTEMPTS_MAX: usize = 256;
/// Not more often than this are old mappings looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Where the payload of a datagram begins in its frame.
const PAYLOAD: usize = ETHERNET + IPV4 + UDP;

/// A port of a guest and the host's socket for it.
#[derive(Debug)]
struct Mapping {
    guest: SocketAddrV4,
    mac: MacAddress,
    socket: OwnedFd,
    used: Instant,
    timeout: Duration,
    /// Who may answer, last used first. The host's addresses, not those that the guest sees.
    peers: VecDeque<SocketAddrV4>,
    ttl: u8,
    ready: bool,
}

/// A forwarded port.
#[derive(Debug)]
struct Forwarded {
    socket: std::net::UdpSocket,
    guest: SocketAddrV4,
    ready: bool,
}

/// A conversation over a forwarded port.
#[derive(Debug)]
struct Session {
    forward: Key,
    peer: SocketAddr,
    used: Instant,
}

/// A socket that may have datagrams for the guest.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Mapping(Key),
    Forward(Key),
}

/// All UDP flows.
#[derive(Debug)]
pub(super) struct UdpTable {
    mappings: Slab<Mapping>,
    by_guest: HashMap<SocketAddrV4, Key>,
    forwards: Slab<Forwarded>,
    /// By the guest's port and the address that the guest sees.
    sessions: HashMap<(SocketAddrV4, SocketAddrV4), Session>,
    /// The same the other way round.
    seen: HashMap<(Key, SocketAddr), SocketAddrV4>,
    ready: VecDeque<Ready>,
    /// Datagrams taken from the socket at the head of `ready` in its turn.
    turn: u32,
    sweep_at: Option<Instant>,
}

/// What became of a datagram that was sent.
enum Sent {
    Done,
    Failed(Errno),
}

impl UdpTable {
    pub(super) fn new() -> Self {
        Self {
            mappings: Slab::new(),
            by_guest: HashMap::new(),
            forwards: Slab::new(),
            sessions: HashMap::new(),
            seen: HashMap::new(),
            ready: VecDeque::new(),
            turn: 0,
            sweep_at: None,
        }
    }

    // ----- from the guest -----

    /// Takes a datagram of a guest that is neither for the DHCP server nor for the DNS forwarder.
    pub(super) fn on_datagram(&mut self, core: &mut Core, ip: &Ipv4<'_>, udp: &UdpIn<'_>) {
        if self.answer_session(core, udp) {
            return;
        }
        let to = match core.route(*udp.destination.ip()) {
            Route::Nobody => return,
            Route::Gateway if core.is_loopback_open() => {
                SocketAddrV4::new(Ipv4Addr::LOCALHOST, udp.destination.port())
            }
            Route::Gateway | Route::Dns => return icmp::unreachable(core, ip, Unreachable::Port),
            Route::Denied => {
                core.counters.drops_denied.add(1);
                return icmp::unreachable(core, ip, Unreachable::Prohibited);
            }
            Route::Outside => udp.destination,
        };
        let key = match self.by_guest.get(&udp.source) {
            Some(&key) => key,
            None => match self.open(core, ip, udp.source) {
                Some(key) => key,
                None => return core.counters.drops_limit.add(1),
            },
        };
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        mapping.used = core.now;
        mapping.mac = ip.source_mac;
        if to.port() != dns::PORT {
            mapping.timeout = TIMEOUT;
        }
        mapping.admit(to);
        let ttl = ip.ttl.saturating_sub(1).max(1);
        if mapping.ttl != ttl && sockopt::set_ip_ttl(&mapping.socket, u32::from(ttl)).is_ok() {
            mapping.ttl = ttl;
        }
        match send(core, mapping, udp.payload, to) {
            Sent::Done => {}
            Sent::Failed(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE) => core.counters.drops_limit.add(1),
            Sent::Failed(errno) => {
                if let Some(code) = Unreachable::from_host(&errno.into()) {
                    icmp::unreachable(core, ip, code);
                }
            }
        }
    }

    /// Sends a datagram back over the forwarded port that its question came in by.
    fn answer_session(&mut self, core: &Core, udp: &UdpIn<'_>) -> bool {
        let Some(session) = self.sessions.get_mut(&(udp.source, udp.destination)) else { return false };
        let Some(forward) = self.forwards.get(session.forward) else { return false };
        session.used = core.now;
        if forward.socket.send_to(udp.payload, session.peer).is_err() {
            core.counters.drops_limit.add(1);
        }
        true
    }

    fn open(&mut self, core: &Core, ip: &Ipv4<'_>, guest: SocketAddrV4) -> Option<Key> {
        if self.mappings.len() >= core.spec.limits.udp_flows_max
            && let Some((oldest, _)) = self.mappings.iter().min_by_key(|(_, mapping)| mapping.used)
        {
            self.remove(oldest);
        }
        let socket = host::udp_socket().ok()?;
        let key = self.mappings.insert(Mapping {
            guest,
            mac: ip.source_mac,
            socket,
            used: core.now,
            timeout: TIMEOUT_DNS,
            peers: VecDeque::new(),
            ttl: 0,
            ready: false,
        });
        let mapping = self.mappings.get(key)?;
        if core.epoll.add(&mapping.socket, Token::Udp(key), Watch::Edge).is_err() {
            self.mappings.remove(key);
            return None;
        }
        self.by_guest.insert(guest, key);
        core.counters.udp_mapped.add(1);
        core.counters.udp_active.set(self.mappings.len() as u64);
        self.plan_sweep(core.now + TIMEOUT_DNS);
        Some(key)
    }

    fn remove(&mut self, key: Key) {
        if let Some(mapping) = self.mappings.remove(key) {
            self.by_guest.remove(&mapping.guest);
        }
    }

    // ----- to the guest -----

    /// Tells whether a socket may have something for the guest.
    pub(super) fn has_output(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Notes what has happened at the socket of a mapping.
    pub(super) fn on_event(&mut self, core: &mut Core, key: Key, event: Event) {
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        if event.failed {
            pass_errors(core, mapping);
        }
        if event.readable && !mapping.ready {
            mapping.ready = true;
            self.ready.push_back(Ready::Mapping(key));
        }
    }

    /// Notes that a forwarded port is readable.
    pub(super) fn on_forward_event(&mut self, key: Key) {
        if let Some(forward) = self.forwards.get_mut(key)
            && !forward.ready
        {
            forward.ready = true;
            self.ready.push_back(Ready::Forward(key));
        }
    }

    /// Puts the next datagram for a guest into `frame`. Returns the frame's length, or None when no socket has
    /// one; a datagram that needs fragments goes to the outbox instead.
    pub(super) fn produce(&mut self, core: &mut Core, frame: &mut [u8]) -> Option<usize> {
        if frame.len() < PAYLOAD {
            return None;
        }
        // Bounded, because datagrams that nobody asked for may come as fast as they are thrown away.
        for _ in 0..ATTEMPTS_MAX {
            let &ready = self.ready.front()?;
            let taken = match ready {
                Ready::Mapping(key) => self.produce_mapping(core, key, frame),
                Ready::Forward(key) => self.produce_forward(core, key, frame),
            };
            self.turn += 1;
            if let Taken::Empty = taken {
                self.turn = 0;
                self.ready.pop_front();
            } else if self.turn >= BURST {
                self.turn = 0;
                self.ready.rotate_left(1);
            }
            match taken {
                Taken::Frame(length) => return Some(length),
                Taken::Queued => return None,
                Taken::Nothing | Taken::Empty => {}
            }
        }
        None
    }

    fn produce_mapping(&mut self, core: &mut Core, key: Key, frame: &mut [u8]) -> Taken {
        let Some(mapping) = self.mappings.get_mut(key) else { return Taken::Empty };
        let (length, from) = match receive(core, mapping.socket.as_fd(), frame) {
            Ok(received) => received,
            Err(Errno::AGAIN) => {
                mapping.ready = false;
                return Taken::Empty;
            }
            // An error that is told of by the error queue, which comes with an event of its own.
            Err(_) => return Taken::Nothing,
        };
        let SocketAddr::V4(from) = from else { return Taken::Nothing };
        if !mapping.admits(from) {
            core.counters.drops_denied.add(1);
            return Taken::Nothing;
        }
        mapping.used = core.now;
        let (guest, link) = (mapping.guest, core.link(mapping.mac));
        let source = core.seen_from_guest(from.into());
        deliver(core, frame, link, source, guest, length)
    }

    fn produce_forward(&mut self, core: &mut Core, key: Key, frame: &mut [u8]) -> Taken {
        let Some(forward) = self.forwards.get_mut(key) else { return Taken::Empty };
        let guest = forward.guest;
        let (length, peer) = match receive(core, forward.socket.as_fd(), frame) {
            Ok(received) => received,
            Err(Errno::AGAIN) => {
                forward.ready = false;
                return Taken::Empty;
            }
            Err(_) => return Taken::Nothing,
        };
        let Some(mac) = core.neighbour(*guest.ip()) else {
            // UDP may be lost; the next datagram finds the guest known.
            super::arp::ask(core, *guest.ip());
            core.counters.drops_limit.add(1);
            return Taken::Nothing;
        };
        let source = self.session(core, key, guest, peer);
        let link = core.link(mac);
        deliver(core, frame, link, source, guest, length)
    }

    /// Returns the address under which the guest sees the peer of a forwarded port.
    fn session(&mut self, core: &Core, forward: Key, guest: SocketAddrV4, peer: SocketAddr) -> SocketAddrV4 {
        if let Some(&source) = self.seen.get(&(forward, peer))
            && let Some(session) = self.sessions.get_mut(&(guest, source))
        {
            session.used = core.now;
            return source;
        }
        if self.sessions.len() >= SESSIONS_MAX
            && let Some((&oldest, _)) = self.sessions.iter().min_by_key(|(_, session)| session.used)
        {
            self.remove_session(oldest);
        }
        // Peers that look alike to the guest, such as one port on two loopback addresses, must differ.
        let mut source = core.seen_from_guest(peer);
        while self.sessions.contains_key(&(guest, source)) {
            source.set_port(source.port().wrapping_add(1).max(1024));
        }
        self.sessions.insert((guest, source), Session { forward, peer, used: core.now });
        self.seen.insert((forward, peer), source);
        self.plan_sweep(core.now + TIMEOUT);
        source
    }

    fn remove_session(&mut self, id: (SocketAddrV4, SocketAddrV4)) {
        if let Some(session) = self.sessions.remove(&id) {
            self.seen.remove(&(session.forward, session.peer));
        }
    }

    // ----- forwarded ports -----

    /// Takes over a socket that listens for a forwarded port.
    pub(super) fn add_forward(
        &mut self,
        core: &Core,
        socket: std::net::UdpSocket,
        guest: SocketAddrV4,
    ) -> std::io::Result<Key> {
        let key = self.forwards.insert(Forwarded { socket, guest, ready: false });
        let added = match self.forwards.get(key) {
            Some(forward) => core.epoll.add(&forward.socket, Token::UdpForward(key), Watch::Edge),
            None => Ok(()),
        };
        if let Err(error) = added {
            self.forwards.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    /// Closes a forwarded port and the conversations over it.
    pub(super) fn remove_forward(&mut self, key: Key) {
        self.forwards.remove(key);
        self.sessions.retain(|_, session| session.forward != key);
        self.seen.retain(|&(forward, _), _| forward != key);
    }

    // ----- time -----

    fn plan_sweep(&mut self, at: Instant) {
        self.sweep_at = Some(self.sweep_at.map_or(at, |planned| planned.min(at)));
    }

    /// Returns when [`UdpTable::on_deadline`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Closes what is not used any more.
    pub(super) fn on_deadline(&mut self, core: &Core) {
        let now = core.now;
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        let old: Vec<Key> = self
            .mappings
            .iter()
            .filter(|(_, mapping)| now.saturating_duration_since(mapping.used) >= mapping.timeout)
            .map(|(key, _)| key)
            .collect();
        for key in old {
            self.remove(key);
        }
        let old: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| now.saturating_duration_since(session.used) >= TIMEOUT)
            .map(|(&id, _)| id)
            .collect();
        for id in old {
            self.remove_session(id);
        }
        core.counters.udp_active.set(self.mappings.len() as u64);
        let mappings = self.mappings.iter().map(|(_, mapping)| mapping.used + mapping.timeout).min();
        let sessions = self.sessions.values().map(|session| session.used + TIMEOUT).min();
        self.sweep_at = mappings.into_iter().chain(sessions).min().map(|at| at.max(now + SWEEP));
    }
}

impl Mapping {
    /// Lets a peer answer from now on.
    fn admit(&mut self, peer: SocketAddrV4) {
        if self.peers.front() == Some(&peer) {
            return;
        }
        self.peers.retain(|&other| other != peer);
        self.peers.push_front(peer);
        self.peers.truncate(PEERS_MAX);
    }

    /// Tells whether a peer may answer: by its address, and on loopback, where every program of the host has
    /// the same, by its port too.
    fn admits(&self, from: SocketAddrV4) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.ip() == from.ip() && (peer.port() == from.port() || !from.ip().is_loopback()))
    }
}

/// What was got out of a socket.
enum Taken {
    /// A frame of this length.
    Frame(usize),
    /// Fragments, which are in the outbox.
    Queued,
    /// A datagram that is not for the guest; there may be more.
    Nothing,
    /// Nothing is left.
    Empty,
}

/// Reads a datagram: the beginning straight into its place in the frame, the rest, if it is too long for one,
/// into the scratch buffer from its beginning.
fn receive(
    core: &mut Core,
    socket: std::os::fd::BorrowedFd<'_>,
    frame: &mut [u8],
) -> Result<(usize, SocketAddr), Errno> {
    let room = (usize::from(core.spec.mtu) - IPV4 - UDP).min(frame.len() - PAYLOAD);
    let mut slices =
        [IoSliceMut::new(&mut frame[PAYLOAD..PAYLOAD + room]), IoSliceMut::new(&mut core.scratch)];
    let received =
        rustix::net::recvmsg(socket, &mut slices, &mut RecvAncillaryBuffer::default(), RecvFlags::empty())?;
    let from = received.address.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(Errno::INVAL)?;
    Ok((received.bytes, from))
}

/// Puts headers before a datagram that [`receive`] has put into the frame.
fn deliver(
    core: &mut Core,
    frame: &mut [u8],
    link: Link,
    source: SocketAddrV4,
    guest: SocketAddrV4,
    length: usize,
) -> Taken {
    let room = (usize::from(core.spec.mtu) - IPV4 - UDP).min(frame.len() - PAYLOAD);
    if length > room {
        let mut payload = frame[PAYLOAD..PAYLOAD + room].to_vec();
        payload.extend_from_slice(&core.scratch[..length - room]);
        core.queue_udp(link, source, guest, &payload);
        return Taken::Queued;
    }
    wire::write_udp(&mut frame[ETHERNET + IPV4..PAYLOAD + length], source, guest);
    let out =
        Ipv4Out { source: *source.ip(), destination: *guest.ip(), protocol: PROTOCOL_UDP, fragment: None };
    Taken::Frame(wire::write_ipv4(frame, link, out, UDP + length))
}

/// Sends a datagram. An error that an earlier one has caused is passed on and does not stop this one.
fn send(core: &mut Core, mapping: &Mapping, payload: &[u8], to: SocketAddrV4) -> Sent {
    let mut result = rustix::net::sendto(&mapping.socket, payload, SendFlags::empty(), &to);
    if result.is_err() && pass_errors(core, mapping) > 0 {
        result = rustix::net::sendto(&mapping.socket, payload, SendFlags::empty(), &to);
    }
    match result {
        Ok(_) => Sent::Done,
        Err(errno) => Sent::Failed(errno),
    }
}

/// Passes the ICMP errors on to the guest that came back for datagrams of a mapping. Returns how many.
fn pass_errors(core: &mut Core, mapping: &Mapping) -> usize {
    let mut count = 0;
    loop {
        let error = match host::take_error(mapping.socket.as_fd(), &mut core.scratch) {
            QueuedError::Empty => return count,
            QueuedError::Other => continue,
            QueuedError::Icmp(error) => error,
        };
        count += 1;
        let destination = core.seen_from_guest(error.destination.into());
        let from = core.seen_from_guest(SocketAddrV4::new(error.offender, 0).into());
        let late = LateError {
            mac: mapping.mac,
            from: *from.ip(),
            kind: error.kind,
            code: error.code,
            source: *mapping.guest.ip(),
            destination: *destination.ip(),
            protocol: PROTOCOL_UDP,
        };
        let mut datagram = vec![0; UDP];
        datagram.extend_from_slice(&core.scratch[..error.quoted]);
        wire::write_udp(&mut datagram, mapping.guest, destination);
        icmp::late_error(core, late, &datagram);
    }
}
