//! The network's process: cards come and go, frames are passed on.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use super::filter;
use super::ports::{PortKey, Ports, SwitchPort};
use super::wire::{self, Received, Sent, WELCOME};
use crate::{Backend, MacAddress, Nat, NatConfig, NetError, NetErrorKind};

/// Frames that a port may send before the next one has its turn.
const TURN: usize = 64;
/// Cards that have not said who they are.
const STRANGERS_MAX: usize = 64;
/// How long a card has to say who it is, and its key to become known.
const STRANGER_PATIENCE: Duration = Duration::from_secs(5);
/// Frames to all that a port may send in a second, and at once: each is as many frames as there are ports.
const BROADCASTS: f64 = 1000.0;
const EVENTS_MAX: usize = 64;

const TOKEN_LISTENER: u64 = 0;
const TOKEN_ROUTER: u64 = 1;
const TOKEN_WATCH: u64 = 2;
/// From here on: the number of a connection.
const TOKEN_CONNECTIONS: u64 = 16;

/// What a turn of the switch brought up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchEvent {
    /// A card came whose key is not known: look whether there are new ports, and [`Switch::set_ports`].
    pub stranger: bool,
    /// The descriptor given to [`Switch::watch`] is readable.
    pub watched: bool,
}

/// What the switch has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchStats {
    /// Frames passed on.
    pub frames: u64,
    /// Frames dropped because their sender was not what it said.
    pub spoofed: u64,
    /// Frames dropped because the receiver was behind, or because there were too many to all.
    pub lost: u64,
    /// Frames to an address that nobody has.
    pub unknown: u64,
}

/// One side of a connection.
#[derive(Debug)]
struct Connection {
    fd: OwnedFd,
    peer: Peer,
}

#[derive(Debug)]
enum Peer {
    /// It has to say who it is.
    Stranger { since: Instant, key: Option<PortKey> },
    /// A card.
    Card { port: SwitchPort, broadcasts: Budget },
}

/// So many in a second.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { left: BROADCASTS, at: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * BROADCASTS).min(BROADCASTS);
        self.at = now;
        let has = self.left >= 1.0;
        self.left -= f64::from(u8::from(has));
        has
    }
}

/// The switch of one network; see the module's page. Belongs to one thread.
#[derive(Debug)]
pub struct Switch {
    listener: OwnedFd,
    epoll: OwnedFd,
    router: Nat,
    router_mac: MacAddress,
    router_addresses: [std::net::Ipv4Addr; 2],
    dhcp: bool,
    ports: Ports,
    connections: HashMap<u64, Connection>,
    /// Connections of cards.
    by_mac: HashMap<MacAddress, u64>,
    next: u64,
    frame: Vec<u8>,
    /// The router had more to send than its turn lets it.
    router_has_more: bool,
    stats: SwitchStats,
}

impl Switch {
    /// Makes a switch whose cards come in at `listener`; `network` is what they find there: addresses by DHCP, names, and
    /// the outside as far as it lets them.
    ///
    /// # Errors
    /// When the configuration does not fit together, and when the host has no descriptors left.
    pub fn new(listener: OwnedFd, network: NatConfig) -> Result<Self, NetError> {
        let addresses = network.addresses()?;
        let dhcp = network.dhcp;
        let router = Nat::new(network)?;
        let failed = |errno| {
            NetError::new(NetErrorKind::Host, "cannot watch a descriptor: raise the limits on epoll")
                .with_source(errno)
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let switch = Self {
            listener,
            frame: vec![0; router.frame_size_max()],
            router,
            router_mac: MacAddress::of_router(addresses[0]),
            router_addresses: addresses,
            dhcp,
            epoll,
            ports: Ports::default(),
            connections: HashMap::new(),
            by_mac: HashMap::new(),
            next: TOKEN_CONNECTIONS,
            router_has_more: false,
            stats: SwitchStats::default(),
        };
        switch.add(&switch.listener, TOKEN_LISTENER).map_err(failed)?;
        switch.add(switch.router.poll_fd(), TOKEN_ROUTER).map_err(failed)?;
        Ok(switch)
    }

    fn add(&self, fd: impl AsFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    }

    /// Watches a descriptor of the caller's, too.
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn watch(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(self.add(fd, TOKEN_WATCH)?)
    }

    /// Says who may be plugged in. Cards that may not any more are unplugged.
    pub fn set_ports(&mut self, ports: impl IntoIterator<Item = SwitchPort>) {
        self.ports = Ports::new(ports);
        self.router.set_hosts(self.ports.hosts());
        let mut gone = Vec::new();
        for (number, connection) in &mut self.connections {
            if let Peer::Card { port, .. } = &mut connection.peer {
                match self.ports.get(&port.key) {
                    Some(now) => *port = now.clone(),
                    None => gone.push(*number),
                }
            }
        }
        for number in gone {
            self.close(number);
        }
        self.by_mac = self
            .connections
            .iter()
            .filter_map(|(number, connection)| match &connection.peer {
                Peer::Card { port, .. } => Some((port.mac, *number)),
                Peer::Stranger { .. } => None,
            })
            .collect();
        let waiting = self.connections.iter().filter_map(|(number, connection)| match connection.peer {
            Peer::Stranger { key: Some(key), .. } => Some((*number, key)),
            _ => None,
        });
        for (number, key) in waiting.collect::<Vec<_>>() {
            if !self.let_in(number, &key) {
                self.close(number);
            }
        }
    }

    /// Cards that are plugged in.
    pub fn connected(&self) -> usize {
        self.by_mac.len()
    }

    /// What it has done so far.
    pub fn stats(&self) -> SwitchStats {
        self.stats
    }

    /// Waits until something comes, `patience` at most, and passes it on.
    ///
    /// # Errors
    /// When the host fails.
    pub fn turn(&mut self, patience: Duration) -> std::io::Result<SwitchEvent> {
        let patience = if self.router_has_more { Duration::ZERO } else { patience };
        let wait = self.router.poll().map_or(patience, |router| router.min(patience));
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let tokens: Vec<u64> = match epoll::wait(&self.epoll, &mut buffer, Some(&wait)) {
            Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
            Err(rustix::io::Errno::INTR) => Vec::new(),
            Err(errno) => return Err(errno.into()),
        };
        let mut event = SwitchEvent::default();
        for token in tokens {
            match token {
                TOKEN_LISTENER => self.accept(),
                TOKEN_ROUTER => {
                    self.router.poll();
                }
                TOKEN_WATCH => event.watched = true,
                number => event.stranger |= self.on_connection(number),
            }
        }
        self.take_from_router();
        self.expel();
        Ok(event)
    }

    fn accept(&mut self) {
        let strangers = self.connections.values().filter(|c| matches!(c.peer, Peer::Stranger { .. })).count();
        let Ok(fd) = wire::accept(&self.listener) else { return };
        if strangers >= STRANGERS_MAX {
            return;
        }
        let number = self.next;
        self.next += 1;
        if self.add(&fd, number).is_ok() {
            let peer = Peer::Stranger { since: Instant::now(), key: None };
            self.connections.insert(number, Connection { fd, peer });
        }
    }

    /// Takes what a connection sends. Returns whether its key has to become known.
    fn on_connection(&mut self, number: u64) -> bool {
        let Some(connection) = self.connections.get(&number) else { return false };
        if let Peer::Stranger { key, .. } = connection.peer {
            let mut hello = [0; 64];
            let said = match wire::receive(&connection.fd, &mut hello) {
                Received::Nothing => return false,
                Received::Packet(len) if key.is_none() => wire::parse_hello(&hello[..len]),
                _ => None,
            };
            match said {
                None => self.close(number),
                Some(key) if self.let_in(number, &key) => {}
                Some(key) => {
                    if let Some(Connection { peer: Peer::Stranger { key: kept, .. }, .. }) =
                        self.connections.get_mut(&number)
                    {
                        *kept = Some(key);
                    }
                    return true;
                }
            }
            return false;
        }
        self.take_from_card(number);
        false
    }

    /// Plugs a card in, if its key is known.
    fn let_in(&mut self, number: u64, key: &PortKey) -> bool {
        let Some(port) = self.ports.get(key).cloned() else { return false };
        // A machine that starts anew may come before its earlier process is seen to be gone.
        if let Some(&before) = self.by_mac.get(&port.mac)
            && before != number
        {
            self.close(before);
        }
        let Some(connection) = self.connections.get_mut(&number) else { return false };
        if wire::send(&connection.fd, WELCOME) != Sent::Yes {
            return false;
        }
        self.by_mac.insert(port.mac, number);
        connection.peer = Peer::Card { port, broadcasts: Budget::new() };
        true
    }

    fn close(&mut self, number: u64) {
        if let Some(Connection { peer: Peer::Card { port, .. }, .. }) = self.connections.remove(&number)
            && self.by_mac.get(&port.mac) == Some(&number)
        {
            self.by_mac.remove(&port.mac);
        }
    }

    /// Closes connections that have not said who they are.
    fn expel(&mut self) {
        self.connections.retain(|_, connection| match connection.peer {
            Peer::Stranger { since, .. } => since.elapsed() < STRANGER_PATIENCE,
            Peer::Card { .. } => true,
        });
    }

    /// Passes on what a card sends, a turn's worth.
    fn take_from_card(&mut self, number: u64) {
        let mut frame = std::mem::take(&mut self.frame);
        let mut closed = false;
        for _ in 0..TURN {
            let Some(connection) = self.connections.get_mut(&number) else { break };
            let Peer::Card { port, broadcasts } = &mut connection.peer else { break };
            let len = match wire::receive(&connection.fd, &mut frame) {
                Received::Packet(len) => len,
                Received::TooLong => continue,
                Received::Nothing => break,
                Received::Closed => {
                    closed = true;
                    break;
                }
            };
            let frame = &frame[..len];
            let (ports, router) = (&self.ports, &self.router_addresses);
            let is_others = |ip| ports.is_taken(ip) || router.contains(&ip);
            let Some(destination) = filter::destination(frame, port, is_others, self.dhcp) else {
                self.stats.spoofed += 1;
                continue;
            };
            if !destination.is_multicast() {
                self.pass(frame, destination);
            } else if broadcasts.take(Instant::now()) {
                self.pass_to_all(frame, Some(number));
                if destination == MacAddress::BROADCAST {
                    self.router.transmit(frame);
                }
            } else {
                self.stats.lost += 1;
            }
        }
        if closed {
            self.close(number);
        }
        self.frame = frame;
    }

    /// Passes on what the router sends, a turn's worth.
    fn take_from_router(&mut self) {
        let mut frame = std::mem::take(&mut self.frame);
        self.router_has_more = true;
        for _ in 0..TURN {
            let Some(len) = self.router.receive(&mut frame) else {
                self.router_has_more = false;
                break;
            };
            let frame = &frame[..len];
            match frame.first_chunk().copied().map(MacAddress) {
                Some(to) if to.is_multicast() => self.pass_to_all(frame, None),
                Some(to) => self.pass(frame, to),
                None => {}
            }
        }
        self.frame = frame;
    }

    fn pass(&mut self, frame: &[u8], to: MacAddress) {
        if to == self.router_mac {
            return self.router.transmit(frame);
        }
        match self.by_mac.get(&to) {
            Some(&number) => self.deliver(frame, number),
            None => self.stats.unknown += 1,
        }
    }

    fn pass_to_all(&mut self, frame: &[u8], but: Option<u64>) {
        let all: Vec<u64> = self.by_mac.values().copied().filter(|number| Some(*number) != but).collect();
        for number in all {
            self.deliver(frame, number);
        }
    }

    fn deliver(&mut self, frame: &[u8], number: u64) {
        let Some(connection) = self.connections.get(&number) else { return };
        match wire::send(&connection.fd, frame) {
            Sent::Yes => self.stats.frames += 1,
            Sent::Full => self.stats.lost += 1,
            // Its own turn finds that, too.
            Sent::Closed => {}
        }
    }
}
