//! What all protocols share: the configuration, the time, the neighbours, and the queue of small frames.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use super::config::{HostLoopback, NatSpec, Outside};
use super::host::Epoll;
use super::hosts::Hosts;
use super::stats::Counters;
use super::wire::{self, ETHERNET, IPV4, Ipv4Out, Link, PROTOCOL_UDP, Reject, UDP};
use crate::{MacAddress, NetError};

/// Frames that wait for a guest that takes none; further ones are dropped.
const OUTBOX_MAX: usize = 512;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 64;
/// Neighbours remembered at most.
const NEIGHBOURS_MAX: usize = 256;

/// Largest IPv4 packet (RFC 791 §3.1).
pub(super) const PACKET_MAX: usize = 65_535;

/// Small frames for the guest, in order. TCP and UDP data does not pass here: it goes from socket to frame when
/// the guest asks for one.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn pop_into(&mut self, frame: &mut [u8]) -> Option<usize> {
        while let Some(bytes) = self.frames.pop_front() {
            let length = bytes.len();
            let fits = frame.get_mut(..length).map(|place| place.copy_from_slice(&bytes));
            if self.spare.len() < SPARE_MAX {
                self.spare.push(bytes);
            }
            if fits.is_some() {
                return Some(length);
            }
        }
        None
    }
}

/// Where a packet of the guest may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The gateway's own address, which stands for the host.
    Gateway,
    /// The DNS forwarder.
    Dns,
    /// Anywhere else, through the host.
    Outside,
    /// To nobody: broadcast and multicast, which end at the router.
    Nobody,
    /// Where no router forwards to (RFC 1812 §4.2.2.11, RFC 3927 §2.7), or the configuration forbids.
    Denied,
}

/// What all protocols share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) spec: NatSpec,
    pub(super) hosts: Hosts,
    pub(super) counters: Arc<Counters>,
    pub(super) outbox: Outbox,
    pub(super) epoll: Epoll,
    /// The time of the current call, read once.
    pub(super) now: Instant,
    /// Room for the largest datagram.
    pub(super) scratch: Vec<u8>,
    neighbours: HashMap<Ipv4Addr, MacAddress>,
    /// The last one learned, so that a busy neighbour costs no look-up.
    last_neighbour: Option<(Ipv4Addr, MacAddress)>,
    next_ident: u16,
}

impl Core {
    pub(super) fn new(spec: NatSpec) -> Result<Self, NetError> {
        Ok(Self {
            spec,
            hosts: Hosts::default(),
            counters: Arc::default(),
            outbox: Outbox::default(),
            epoll: Epoll::new()?,
            now: Instant::now(),
            scratch: vec![0; PACKET_MAX],
            neighbours: HashMap::new(),
            last_neighbour: None,
            next_ident: 1,
        })
    }

    /// Returns the link to a guest.
    pub(super) fn link(&self, guest: MacAddress) -> Link {
        Link { own: self.spec.gateway_mac, guest }
    }

    pub(super) fn neighbour(&self, address: Ipv4Addr) -> Option<MacAddress> {
        self.neighbours.get(&address).copied()
    }

    /// Remembers where a guest is. Returns whether that is news.
    pub(super) fn learn(&mut self, address: Ipv4Addr, mac: MacAddress) -> bool {
        if self.last_neighbour == Some((address, mac)) || !self.spec.is_guest(address) {
            return false;
        }
        self.last_neighbour = Some((address, mac));
        if self.neighbours.len() >= NEIGHBOURS_MAX
            && !self.neighbours.contains_key(&address)
            && let Some(&other) = self.neighbours.keys().next()
        {
            self.neighbours.remove(&other);
        }
        self.neighbours.insert(address, mac) != Some(mac)
    }

    /// Counts a frame that is dropped.
    pub(super) fn drop_frame(&self, reject: Reject) {
        let counter = match reject {
            Reject::Malformed => &self.counters.drops_malformed,
            Reject::NotForUs => &self.counters.drops_not_for_us,
            Reject::Unsupported => &self.counters.drops_unsupported,
        };
        counter.add(1);
    }

    /// Puts a frame into the outbox that `write` makes in a buffer of `length_max` zeroes.
    pub(super) fn queue(&mut self, length_max: usize, write: impl FnOnce(&mut [u8]) -> usize) {
        if self.outbox.frames.len() >= OUTBOX_MAX {
            self.counters.drops_queue_full.add(1);
            return;
        }
        let mut frame = self.outbox.spare.pop().unwrap_or_default();
        frame.clear();
        frame.resize(length_max, 0);
        let length = write(&mut frame);
        frame.truncate(length);
        self.outbox.frames.push_back(frame);
    }

    /// Queues an IP packet with this payload, in as many fragments as it needs (RFC 791 §2.3).
    pub(super) fn queue_ipv4(
        &mut self,
        link: Link,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
    ) {
        let room = usize::from(self.spec.mtu) - IPV4;
        if payload.len() <= room {
            let out = Ipv4Out { source, destination, protocol, fragment: None };
            self.queue(ETHERNET + IPV4 + payload.len(), |frame| {
                frame[ETHERNET + IPV4..].copy_from_slice(payload);
                wire::write_ipv4(frame, link, out, payload.len())
            });
            return;
        }
        let ident = self.next_ident;
        self.next_ident = self.next_ident.wrapping_add(1).max(1);
        let room = room & !7;
        for (index, piece) in payload.chunks(room).enumerate() {
            let offset = index * room;
            let more = offset + piece.len() < payload.len();
            let out = Ipv4Out { source, destination, protocol, fragment: Some((ident, offset, more)) };
            self.queue(ETHERNET + IPV4 + piece.len(), |frame| {
                frame[ETHERNET + IPV4..].copy_from_slice(piece);
                wire::write_ipv4(frame, link, out, piece.len())
            });
        }
    }

    /// Queues a UDP datagram for a guest.
    pub(super) fn queue_udp(
        &mut self,
        link: Link,
        source: SocketAddrV4,
        destination: SocketAddrV4,
        payload: &[u8],
    ) {
        let mut datagram = Vec::with_capacity(UDP + payload.len());
        datagram.extend([0; UDP]);
        datagram.extend(payload);
        wire::write_udp(&mut datagram, source, destination);
        self.queue_ipv4(link, *source.ip(), *destination.ip(), PROTOCOL_UDP, &datagram);
    }

    /// Decides where a packet of the guest may go.
    pub(super) fn route(&self, destination: Ipv4Addr) -> Route {
        if destination.is_broadcast()
            || destination.is_multicast()
            || destination == self.spec.subnet.broadcast()
        {
            Route::Nobody
        } else if destination == self.spec.dns {
            Route::Dns
        } else if destination == self.spec.gateway {
            Route::Gateway
        } else if self.spec.outside == Outside::Restricted
            || self.spec.subnet.contains(destination)
            || destination.is_loopback()
            || destination.is_link_local()
            || destination.octets()[0] == 0
            || destination.octets()[0] >= 240
        {
            Route::Denied
        } else {
            Route::Outside
        }
    }

    /// Returns whether the guest may reach the host's loopback.
    pub(super) fn is_loopback_open(&self) -> bool {
        self.spec.host_loopback == HostLoopback::Allowed && self.spec.outside == Outside::Allowed
    }

    /// Returns the address under which the guest sees a peer on the host's side: loopback is the gateway's.
    pub(super) fn seen_from_guest(&self, peer: SocketAddr) -> SocketAddrV4 {
        let address = match peer.ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
        };
        let unusable =
            address.is_loopback() || address.is_unspecified() || self.spec.subnet.contains(address);
        SocketAddrV4::new(if unusable { self.spec.gateway } else { address }, peer.port())
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::NatConfig;
    use super::*;

    fn core(options: &str) -> Core {
        Core::new(options.parse::<NatConfig>().unwrap().try_into().unwrap()).unwrap()
    }

    #[test]
    fn routes() {
        let open = core("");
        let restricted = core("restrict=on");
        for (address, route, when_restricted) in [
            ("10.0.2.2", Route::Gateway, Route::Gateway),
            ("10.0.2.3", Route::Dns, Route::Dns),
            ("10.0.2.16", Route::Denied, Route::Denied),
            ("10.0.2.255", Route::Nobody, Route::Nobody),
            ("255.255.255.255", Route::Nobody, Route::Nobody),
            ("224.0.0.251", Route::Nobody, Route::Nobody),
            ("127.0.0.1", Route::Denied, Route::Denied),
            ("0.0.0.0", Route::Denied, Route::Denied),
            ("169.254.169.254", Route::Denied, Route::Denied),
            ("250.1.1.1", Route::Denied, Route::Denied),
            ("192.0.2.7", Route::Outside, Route::Denied),
            ("10.0.3.1", Route::Outside, Route::Denied),
        ] {
            assert_eq!(open.route(address.parse().unwrap()), route, "{address}");
            assert_eq!(restricted.route(address.parse().unwrap()), when_restricted, "{address}");
        }
        assert!(open.is_loopback_open());
        assert!(!restricted.is_loopback_open());
        assert!(!core("loopback=off").is_loopback_open());
    }

    #[test]
    fn peers_on_loopback_are_seen_as_the_gateway() {
        let core = core("");
        for (peer, seen) in [
            ("127.0.0.1:80", "10.0.2.2:80"),
            ("127.0.0.53:53", "10.0.2.2:53"),
            ("[::1]:80", "10.0.2.2:80"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("10.0.2.15:80", "10.0.2.2:80"),
        ] {
            assert_eq!(core.seen_from_guest(peer.parse().unwrap()), seen.parse().unwrap(), "{peer}");
        }
    }

    #[test]
    fn neighbours_are_bounded_and_only_guests() {
        let mut core = core("subnet=10.0.0.0/16");
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        assert!(!core.learn(Ipv4Addr::new(10, 0, 0, 2), mac), "that is the gateway");
        assert!(!core.learn(Ipv4Addr::new(10, 1, 0, 1), mac), "that is elsewhere");
        for i in 0..1000u16 {
            let [high, low] = (i + 256).to_be_bytes();
            assert!(core.learn(Ipv4Addr::new(10, 0, high, low), mac));
        }
        assert!(core.neighbours.len() <= NEIGHBOURS_MAX);
    }

    #[test]
    fn outbox_is_bounded_and_long_datagrams_become_fragments() {
        let mut core = core("");
        let link = core.link(MacAddress([2, 0, 0, 0, 0, 1]));
        let source: SocketAddrV4 = "10.0.2.3:53".parse().unwrap();
        let destination = "10.0.2.15:1000".parse().unwrap();
        let payload: Vec<u8> = (0..4000u32).map(|i| i as u8).collect();
        core.queue_udp(link, source, destination, &payload);
        let mut frame = [0; 1514];
        let mut joined = Vec::new();
        while let Some(length) = core.outbox.pop_into(&mut frame) {
            let Ok(wire::Packet::Ipv4(packet)) = wire::parse(&frame[..length], link.guest) else { panic!() };
            assert_eq!(packet.fragment_offset, joined.len());
            joined.extend_from_slice(packet.payload);
            assert_eq!(packet.more_fragments, joined.len() < UDP + payload.len());
        }
        let udp = wire::parse_udp(*source.ip(), *destination.ip(), &joined).unwrap();
        assert_eq!(udp.payload, payload);

        for _ in 0..2 * OUTBOX_MAX {
            core.queue_udp(link, source, destination, b"x");
        }
        assert_eq!(core.outbox.frames.len(), OUTBOX_MAX);
        assert_eq!(core.counters.snapshot().drops_queue_full, OUTBOX_MAX as u64);
        // A frame that the guest's buffer cannot hold is skipped.
        assert_eq!(core.outbox.pop_into(&mut [0; 10]), None);
        assert!(core.outbox.is_empty());
    }
}
