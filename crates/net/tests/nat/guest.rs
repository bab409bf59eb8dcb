//! A guest made of smoltcp, plugged into a network through a link that may do harm.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use net::{Backend, MacAddress, Nat, NatConfig};
use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};

/// How long anything may take before a test is stuck.
const WATCHDOG: Duration = Duration::from_secs(120);

const FIRST_PORT: u16 = 40_000;

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Two queues of frames.
pub(crate) struct Queues {
    pub(crate) to_guest: VecDeque<Vec<u8>>,
    pub(crate) from_guest: VecDeque<Vec<u8>>,
    mtu: usize,
}

pub(crate) struct Received(Vec<u8>);
pub(crate) struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Received(frame), Sending(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        // A card's ring is no longer than this.
        (self.from_guest.len() < 256).then_some(Sending(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// A link that loses, repeats and delays frames, by a seeded generator.
pub(crate) struct Harm {
    pub(crate) percent: u64,
    state: u64,
    late: Vec<(u32, Vec<u8>)>,
}

impl Harm {
    pub(crate) fn new(seed: u64, percent: u64) -> Self {
        Self { percent, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, late: Vec::new() }
    }

    fn chance(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % 100 < self.percent
    }

    /// Passes one frame on, or not, or twice; late frames come after a few others.
    fn pass(&mut self, frame: Vec<u8>, out: &mut VecDeque<Vec<u8>>) {
        if self.percent == 0 {
            return out.push_back(frame);
        }
        if self.chance() {
            return;
        }
        if self.chance() {
            out.push_back(frame.clone());
        }
        if self.chance() {
            self.late.push((5, frame));
        } else {
            out.push_back(frame);
        }
        self.late.retain_mut(|(after, frame)| {
            *after -= 1;
            if *after == 0 {
                out.push_back(std::mem::take(frame));
            }
            *after > 0
        });
    }
}

pub(crate) struct Guest {
    pub(crate) nat: Nat,
    pub(crate) iface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) queues: Queues,
    /// To the guest, from the guest.
    pub(crate) harm: [Harm; 2],
    /// Codes of "destination unreachable" that came, with the destinations.
    pub(crate) unreachable: Vec<(u8, Ipv4Addr)>,
    /// Who told of "time exceeded", with the destinations.
    pub(crate) time_exceeded: Vec<(Ipv4Addr, Ipv4Addr)>,
    frame: Vec<u8>,
    begun: Instant,
    next_port: u16,
}

impl Guest {
    /// A guest with its address set by hand.
    pub(crate) fn new(config: NatConfig) -> Self {
        let mut guest = Self::without_address(config);
        guest.set_address(GUEST, GATEWAY);
        guest
    }

    pub(crate) fn without_address(config: NatConfig) -> Self {
        let nat = Nat::new(config).unwrap();
        let mac = MacAddress([0xa6, 0x41, 0x72, 0, 0, 1]);
        let mtu = nat.frame_size_max();
        let mut queues = Queues { to_guest: VecDeque::new(), from_guest: VecDeque::new(), mtu };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        let iface = Interface::new(config, &mut queues, smoltcp::time::Instant::ZERO);
        Self {
            frame: vec![0; nat.frame_size_max()],
            nat,
            iface,
            sockets: SocketSet::new(Vec::new()),
            queues,
            unreachable: Vec::new(),
            time_exceeded: Vec::new(),
            harm: [Harm::new(1, 0), Harm::new(2, 0)],
            begun: Instant::now(),
            next_port: FIRST_PORT,
        }
    }

    pub(crate) fn set_address(&mut self, address: Ipv4Addr, gateway: Ipv4Addr) {
        self.iface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)).unwrap();
        });
        self.iface.routes_mut().add_default_ipv4_route(gateway).unwrap();
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.begun.elapsed().as_micros() as i64)
    }

    /// Moves frames once in both directions. Returns whether any moved.
    pub(crate) fn step(&mut self) -> bool {
        let mut moved = false;
        self.nat.poll();
        while let Some(length) = self.nat.receive(&mut self.frame) {
            moved = true;
            let frame = &self.frame[..length];
            // IPv4 with an ICMP error in it: its code, and the destination in the header that it quotes.
            if frame[12..14] == [8, 0] && frame[23] == 1 && matches!(frame[34], 3 | 11) {
                let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
                match frame[34] {
                    3 => self.unreachable.push((frame[35], address(58))),
                    _ => self.time_exceeded.push((address(26), address(58))),
                }
            }
            self.harm[0].pass(self.frame[..length].to_vec(), &mut self.queues.to_guest);
            if self.queues.to_guest.len() >= 256 {
                break;
            }
        }
        let now = self.now();
        if self.iface.poll(now, &mut self.queues, &mut self.sockets) == PollResult::SocketStateChanged {
            moved = true;
        }
        let mut passed = VecDeque::new();
        while let Some(frame) = self.queues.from_guest.pop_front() {
            moved = true;
            self.harm[1].pass(frame, &mut passed);
        }
        for frame in passed {
            self.nat.transmit(&frame);
        }
        moved
    }

    /// Waits as a worker thread would: for the descriptor, or the next timer.
    fn wait(&mut self) {
        let now = self.now();
        let guest = self.iface.poll_delay(now, &self.sockets).map(Duration::from);
        // The descriptor alone must suffice for the network's own timers; the bound only serves tests whose
        // condition a host thread makes true.
        let longest = Duration::from_millis(20);
        let delay = guest.unwrap_or(longest).min(longest);
        let timeout = Timespec { tv_sec: 0, tv_nsec: delay.subsec_nanos().into() };
        let mut polled = [PollFd::new(&self.nat, PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
    }

    /// Runs until `done` gives a value.
    pub(crate) fn run<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let moved = self.step();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(begun.elapsed() < WATCHDOG, "stuck: {what}; {:?}", self.nat.handle().stats());
            if !moved {
                self.wait();
            }
        }
    }

    /// Runs until nothing moves any more.
    pub(crate) fn settle(&mut self) {
        while self.step() {}
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn add_tcp(&mut self, buffer: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    pub(crate) fn add_udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 128 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Begins a connection.
    pub(crate) fn start_connect(&mut self, to: (Ipv4Addr, u16), buffer: usize) -> SocketHandle {
        let handle = self.add_tcp(buffer);
        let port = self.next_port;
        self.next_port += 1;
        let endpoint: IpEndpoint = to.into();
        let context = self.iface.context();
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(context, endpoint, port).unwrap();
        handle
    }

    /// Opens a connection; None when it is refused.
    pub(crate) fn connect(&mut self, to: (Ipv4Addr, u16), buffer: usize) -> Option<SocketHandle> {
        let handle = self.start_connect(to, buffer);
        self.run("connect", |guest| match guest.tcp(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            tcp::State::Closed => Some(false),
            _ => Some(true),
        })
        .then_some(handle)
    }

    /// Drops all sockets without a word, and counts ports from the beginning again.
    pub(crate) fn forget_connections(&mut self) {
        self.sockets = SocketSet::new(Vec::new());
        self.next_port = FIRST_PORT;
    }

    /// Sends all of `data`.
    pub(crate) fn send(&mut self, handle: SocketHandle, data: &[u8]) {
        let mut sent = 0;
        self.run("send", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            (sent == data.len()).then_some(())
        });
    }

    /// Reads until the peer says that there is no more. Fails when the connection is reset.
    pub(crate) fn read_to_end(&mut self, handle: SocketHandle) -> Result<Vec<u8>, tcp::RecvError> {
        let mut data = Vec::new();
        self.run("read", |guest| {
            let socket = guest.tcp(handle);
            let mut buffer = [0; 65_536];
            match socket.recv_slice(&mut buffer) {
                Ok(count) => {
                    data.extend_from_slice(&buffer[..count]);
                    None
                }
                Err(tcp::RecvError::Finished) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        })?;
        Ok(data)
    }

    /// Sends a datagram and returns the first one that comes back.
    pub(crate) fn exchange(
        &mut self,
        handle: SocketHandle,
        to: (Ipv4Addr, u16),
        data: &[u8],
    ) -> (Vec<u8>, IpEndpoint) {
        self.udp(handle).send_slice(data, IpEndpoint::from(to)).unwrap();
        self.receive(handle)
    }

    /// Waits for a datagram.
    pub(crate) fn receive(&mut self, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
        self.run("datagram", |guest| {
            let (data, meta) = guest.udp(handle).recv().ok()?;
            Some((data.to_vec(), meta.endpoint))
        })
    }
}

/// Bytes that differ by place.
pub(crate) fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
