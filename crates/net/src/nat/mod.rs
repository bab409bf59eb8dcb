//! User-mode networking: a router for one guest network, made of ordinary sockets of the host.
//!
//! ```text
//!            transmit ┌──────────────────────── Nat ────────────────────────┐
//!   guest ──────────> │ wire ─> arp, dhcp, icmp, dns, udp, tcp ─> sockets   │ <──> the host's kernel
//!         <────────── │ wire <─ outbox | udp, tcp straight from sockets <── │
//!            receive  └───────── epoll, timer: poll_fd, poll ───────────────┘
//! ```
//!
//! [`Nat`] is one object for one thread. It never blocks and starts no thread: whoever moves the frames calls
//! [`transmit`](crate::Backend::transmit), [`receive`](crate::Backend::receive) and
//! [`poll`](crate::Backend::poll), and waits on [`poll_fd`](crate::Backend::poll_fd). Other threads hold a
//! [`NatHandle`]. All sockets are watched by one epoll descriptor, which is also `poll_fd`.
//!
//! Frames for the guest are made when it asks for one, from what the sockets hold then: a guest that is slow
//! slows its peers down instead of filling our memory.
//!
//! What the guest finds in its network (by default that of QEMU's `-netdev user`):
//!
//! | address | what |
//! |---|---|
//! | 10.0.2.2 | gateway; answers echo; connections to it reach the host's 127.0.0.1, if allowed |
//! | 10.0.2.3 | DNS forwarder, UDP and TCP |
//! | 10.0.2.15… | guests, by DHCP |
//! | the rest | what the host reaches, by its own addresses |
//!
//! Never forwarded: loopback, link-local (so not 169.254.169.254 either), multicast and broadcast. A service of
//! the host that listens on all its addresses can be reached by its outside address even when the way to its
//! loopback is closed; restrict the network to close that too.
//!
//! Nothing of this needs to be saved with a VM. In a network made anew, a guest that was restored keeps its
//! address (the DHCP server takes it back when it renews), is found again by its first packet, and learns by
//! RST that its connections are gone.
//!
//! **Not here**: IPv6 (its frames are dropped and counted), multicast, other transports (answered with ICMP),
//! traffic between guests.

mod arp;
mod config;
mod core;
mod dhcp;
mod dns;
mod forward;
mod handle;
mod host;
mod hosts;
mod icmp;
mod reassembly;
mod slab;
mod stats;
pub(crate) mod tcp;
mod udp;
pub(crate) mod wire;

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use self::config::{HostLoopback, Ipv4Subnet, NatConfig, NatLimits, Outside, Resolvers};
pub use self::dns::{GATEWAY_NAME, HOST_NAME};
pub use self::forward::{Forward, Transport};
pub use self::handle::{ForwardId, ForwardStatus, NatHandle};
pub use self::hosts::NatHost;
pub use self::stats::NatStats;

use self::config::NatSpec;
use self::core::{Core, Route};
use self::dhcp::DhcpServer;
use self::dns::DnsForwarder;
use self::forward::ForwardSocket;
use self::handle::{Command, Shared};
use self::host::{Event, Flag, Timer, Token, Watch};
use self::hosts::Hosts;
use self::icmp::{PingTable, Unreachable};
use self::reassembly::Reassembly;
use self::slab::Key;
use self::tcp::TcpTable;
use self::udp::UdpTable;
use self::wire::{ETHERNET, Ipv4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Reject};
use crate::{Backend, NetError};

/// Times that events are taken from the kernel before the caller gets its turn again.
const ROUNDS_MAX: usize = 4;

/// A user-mode network; see the module's page.
#[derive(Debug)]
pub struct Nat {
    core: Core,
    tcp: TcpTable,
    udp: UdpTable,
    pings: PingTable,
    dns: DnsForwarder,
    dhcp: DhcpServer,
    reassembly: Reassembly,
    shared: Arc<Shared>,
    forwards: HashMap<ForwardId, ActiveForward>,
    timer: Timer,
    /// When the timer runs out, if it is set.
    timer_at: Option<Instant>,
    output: Flag,
    is_output_raised: bool,
    /// Whether UDP is asked first for the next frame; it alternates.
    udp_first: bool,
    events: Vec<Event>,
}

/// Where a forwarded port is kept.
#[derive(Clone, Copy, Debug)]
enum ActiveForward {
    Tcp(Key),
    Udp(Key),
}

impl Nat {
    /// Makes a network and opens its forwarded ports.
    ///
    /// # Errors
    /// Fails when the configuration does not fit together, when a forwarded port cannot be listened on, and
    /// when the host has no descriptors left.
    pub fn new(mut config: NatConfig) -> Result<Self, NetError> {
        let forwards = std::mem::take(&mut config.forwards);
        let mut spec = NatSpec::try_from(config)?;
        spec.limits.fit(host::descriptors_max());
        let core = Core::new(spec.clone())?;
        let shared = Arc::new(Shared::new(spec, core.counters.clone())?);
        let (timer, output) = (Timer::new()?, Flag::new()?);
        for (fd, token) in [
            (timer.as_fd(), Token::Timer),
            (output.as_fd(), Token::Output),
            (shared.wake.as_fd(), Token::Commands),
        ] {
            core.epoll.add(fd, token, Watch::Level).map_err(|source| {
                NetError::new(
                    crate::NetErrorKind::Host,
                    "cannot watch a descriptor: raise the limits on epoll",
                )
                .with_source(source)
            })?;
        }
        let mut nat = Self {
            tcp: TcpTable::new(core.spec.limits.buffer_total_max),
            udp: UdpTable::new(),
            pings: PingTable::new(),
            dns: DnsForwarder::new(),
            dhcp: DhcpServer::new(&core.spec),
            reassembly: Reassembly::default(),
            core,
            shared,
            forwards: HashMap::new(),
            timer,
            timer_at: None,
            output,
            is_output_raised: false,
            udp_first: false,
            events: Vec::new(),
        };
        let handle = nat.handle();
        for forward in &forwards {
            handle.add_forward(forward)?;
        }
        nat.on_commands();
        Ok(nat)
    }

    /// Returns a handle for other threads.
    pub fn handle(&self) -> NatHandle {
        NatHandle { shared: Arc::clone(&self.shared) }
    }

    /// Says which guests there are: each gets its address by DHCP, and is found by its name.
    pub fn set_hosts(&mut self, hosts: impl IntoIterator<Item = NatHost>) {
        self.core.hosts = Hosts::new(hosts);
    }

    fn on_ipv4(&mut self, ip: &Ipv4<'_>) {
        if !ip.is_fragment() {
            return self.on_packet(ip);
        }
        if let Some(payload) = self.reassembly.take(ip, self.core.now) {
            self.on_packet(&Ipv4 { more_fragments: false, fragment_offset: 0, payload: &payload, ..*ip });
        }
    }

    fn on_packet(&mut self, ip: &Ipv4<'_>) {
        if ip.ttl == 0 {
            return self.core.drop_frame(Reject::Malformed);
        }
        if ip.protocol == PROTOCOL_UDP && self.on_dhcp(ip) {
            return;
        }
        if !self.core.spec.is_guest(ip.source) {
            return self.core.drop_frame(Reject::NotForUs);
        }
        if self.core.learn(ip.source, ip.source_mac) {
            self.tcp.on_neighbour(ip.source, ip.source_mac);
        }
        let route = self.core.route(ip.destination);
        if ip.ttl == 1 && route == Route::Outside {
            return icmp::time_exceeded(&mut self.core, ip);
        }
        match ip.protocol {
            PROTOCOL_TCP => match wire::parse_tcp(ip.source, ip.destination, ip.payload) {
                Ok(tcp) => self.tcp.on_segment(&mut self.core, &mut self.dns, ip, &tcp),
                Err(reject) => self.core.drop_frame(reject),
            },
            PROTOCOL_UDP => match wire::parse_udp(ip.source, ip.destination, ip.payload) {
                Ok(udp) if route == Route::Dns && udp.destination.port() == dns::PORT => {
                    self.dns.on_query(&mut self.core, ip.source_mac, &udp);
                }
                Ok(udp) => self.udp.on_datagram(&mut self.core, ip, &udp),
                Err(reject) => self.core.drop_frame(reject),
            },
            PROTOCOL_ICMP => self.pings.on_packet(&mut self.core, ip),
            _ => {
                self.core.drop_frame(Reject::Unsupported);
                if route != Route::Nobody {
                    icmp::unreachable(&mut self.core, ip, Unreachable::Protocol);
                }
            }
        }
    }

    /// Takes a packet for the DHCP server. Returns false when it is not for it.
    fn on_dhcp(&mut self, ip: &Ipv4<'_>) -> bool {
        let for_us = ip.destination.is_broadcast() || ip.destination == self.core.spec.gateway;
        if !for_us || !self.core.spec.dhcp {
            return false;
        }
        let Ok(udp) = wire::parse_udp(ip.source, ip.destination, ip.payload) else { return false };
        if udp.destination.port() != dhcp::PORT_SERVER {
            return false;
        }
        let core = &mut self.core;
        if let Some(reply) =
            self.dhcp.on_message(&core.spec, &core.hosts, ip.source_mac, udp.payload, core.now)
        {
            if reply.acked {
                core.counters.dhcp_acks.add(1);
            }
            let source = SocketAddrV4::new(core.spec.gateway, dhcp::PORT_SERVER);
            let destination = SocketAddrV4::new(reply.destination, dhcp::PORT_CLIENT);
            let link = core.link(reply.mac);
            core.queue_udp(link, source, destination, &reply.message);
        }
        true
    }

    fn on_event(&mut self, event: Event) {
        let core = &mut self.core;
        match event.token {
            Token::Output => {}
            Token::Timer => {
                self.timer.lower();
                self.timer_at = None;
            }
            Token::Commands => {
                self.shared.wake.lower();
                self.on_commands();
            }
            Token::Tcp(key) => self.tcp.on_event(core, key, event),
            Token::Udp(key) => self.udp.on_event(core, key, event),
            Token::Ping(key) => self.pings.on_event(core, key, event),
            Token::Dns(key) => self.dns.on_event(core, key),
            Token::TcpForward(key) => self.tcp.on_forward_event(core, key),
            Token::UdpForward(key) => self.udp.on_forward_event(key),
        }
    }

    fn on_commands(&mut self) {
        for command in self.shared.take_commands() {
            match command {
                Command::Add { id, socket, guest } => {
                    let added = match socket {
                        ForwardSocket::Tcp(socket) => {
                            self.tcp.add_forward(&self.core, socket, guest).map(ActiveForward::Tcp)
                        }
                        ForwardSocket::Udp(socket) => {
                            self.udp.add_forward(&self.core, socket, guest).map(ActiveForward::Udp)
                        }
                    };
                    match added {
                        Ok(active) => {
                            self.forwards.insert(id, active);
                        }
                        Err(_) => self.shared.forget(id),
                    }
                }
                Command::Remove { id } => match self.forwards.remove(&id) {
                    Some(ActiveForward::Tcp(key)) => self.tcp.remove_forward(key),
                    Some(ActiveForward::Udp(key)) => self.udp.remove_forward(key),
                    None => {}
                },
            }
        }
    }

    fn has_output(&self) -> bool {
        !self.core.outbox.is_empty() || self.tcp.has_output() || self.udp.has_output()
    }

    /// Keeps `poll_fd` readable for as long as there is something for the guest.
    fn signal_output(&mut self) {
        let has_output = self.has_output();
        if has_output != self.is_output_raised {
            self.is_output_raised = has_output;
            if has_output {
                self.output.raise();
            } else {
                self.output.lower();
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let all = [self.tcp.deadline(), self.udp.deadline(), self.pings.deadline(), self.dns.deadline()];
        all.into_iter().flatten().min()
    }

    /// Sets the timer, unless it will run out early enough anyway.
    fn set_timer(&mut self, deadline: Instant) {
        if self.timer_at.is_none_or(|at| deadline < at) {
            self.timer_at = Some(deadline);
            self.timer.set(deadline.saturating_duration_since(self.core.now));
        }
    }

    fn next_frame(&mut self, frame: &mut [u8]) -> Option<usize> {
        loop {
            if let Some(length) = self.core.outbox.pop_into(frame) {
                return Some(length);
            }
            self.udp_first = !self.udp_first;
            let core = &mut self.core;
            let length = if self.udp_first {
                self.udp.produce(core, frame).or_else(|| self.tcp.produce(core, frame))
            } else {
                self.tcp.produce(core, frame).or_else(|| self.udp.produce(core, frame))
            };
            if length.is_some() || self.core.outbox.is_empty() {
                return length;
            }
        }
    }
}

impl Backend for Nat {
    fn transmit(&mut self, frame: &[u8]) {
        self.core.counters.frames_from_guest.add(1);
        self.core.counters.bytes_from_guest.add(frame.len() as u64);
        self.core.now = Instant::now();
        match wire::parse(frame, self.core.spec.gateway_mac) {
            Ok(Packet::Ipv4(ip)) => self.on_ipv4(&ip),
            Ok(Packet::Arp(arp)) => {
                if let Some(address) = arp::on_packet(&mut self.core, &arp) {
                    self.tcp.on_neighbour(address, arp.source_mac);
                }
            }
            Err(reject) => self.core.drop_frame(reject),
        }
        self.signal_output();
    }

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        self.core.now = Instant::now();
        self.tcp.flush();
        let length = self.next_frame(frame);
        match length {
            Some(length) => {
                self.core.counters.frames_to_guest.add(1);
                self.core.counters.bytes_to_guest.add(length as u64);
            }
            None => {
                self.signal_output();
                if let Some(deadline) = self.deadline() {
                    self.set_timer(deadline);
                }
            }
        }
        length
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.core.epoll.as_fd()
    }

    fn poll(&mut self) -> Option<Duration> {
        self.core.now = Instant::now();
        let mut events = std::mem::take(&mut self.events);
        for _ in 0..ROUNDS_MAX {
            let more = self.core.epoll.take(&mut events);
            for &event in &events {
                self.on_event(event);
            }
            if !more {
                break;
            }
        }
        self.events = events;
        self.tcp.flush();
        self.tcp.on_deadline(&mut self.core);
        self.udp.on_deadline(&self.core);
        self.pings.on_deadline(self.core.now);
        self.dns.on_deadline(&mut self.core);
        self.signal_output();
        let deadline = self.deadline()?;
        self.set_timer(deadline);
        Some(deadline.saturating_duration_since(self.core.now))
    }

    fn frame_size_max(&self) -> usize {
        ETHERNET + usize::from(self.core.spec.mtu)
    }
}

impl AsFd for Nat {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll_fd()
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.shared.is_gone.store(true, Ordering::Release);
        // Sockets that wait to be taken over are closed now, not with the last handle.
        drop(self.shared.take_commands());
    }
}
