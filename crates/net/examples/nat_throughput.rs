//! How fast the NAT moves data: a guest made of smoltcp against servers on the host's loopback.
//!
//! `cargo run --release -p net --example nat_throughput [-- MEBIBYTES [MTU]]`
//!
//! The guest's own stack and the copying of frames take most of the time of such a run, so the time inside the
//! NAT is measured apart: "NAT alone" is what it would carry if all else cost nothing.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use net::{Backend, MacAddress, Nat, NatConfig};
use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const RING: usize = 256;

#[derive(Default)]
struct Card {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received<'a>(Vec<u8>, &'a mut Vec<Vec<u8>>);
struct Sending<'a>(Vec<u8>, &'a mut VecDeque<Vec<u8>>);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.0);
        self.1.push(self.0);
        result
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, length: usize, f: F) -> R {
        self.0.resize(length, 0);
        let result = f(&mut self.0);
        self.1.push_back(self.0);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let frame = self.to_guest.pop_front()?;
        let buffer = self.spare.pop().unwrap_or_default();
        Some((Received(frame, &mut self.spare), Sending(buffer, &mut self.from_guest)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        let room = self.from_guest.len() < RING;
        room.then(|| Sending(self.spare.pop().unwrap_or_default(), &mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = smoltcp::phy::Checksum::Tx;
        checksum.udp = smoltcp::phy::Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Guest {
    nat: Nat,
    iface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    begun: Instant,
    in_nat: Duration,
    frames: u64,
}

impl Guest {
    fn new(mtu: u16) -> Self {
        let nat = Nat::new(NatConfig { mtu, ..NatConfig::default() }).expect("a network");
        let mut card = Card { mtu: nat.frame_size_max(), ..Card::default() };
        let mac = HardwareAddress::Ethernet(EthernetAddress(MacAddress([0xa6, 0x41, 0x72, 0, 0, 1]).0));
        let mut iface = Interface::new(Config::new(mac), &mut card, smoltcp::time::Instant::ZERO);
        iface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::v4(10, 0, 2, 15), 24)).expect("room for one address");
        });
        iface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room for one route");
        let sockets = SocketSet::new(Vec::new());
        Self { nat, iface, sockets, card, begun: Instant::now(), in_nat: Duration::ZERO, frames: 0 }
    }

    fn step(&mut self) {
        let begun = Instant::now();
        self.nat.poll();
        let mut received = 0;
        while self.card.to_guest.len() < RING {
            let mut frame = self.card.spare.pop().unwrap_or_default();
            frame.resize(self.card.mtu, 0);
            let Some(length) = self.nat.receive(&mut frame) else {
                self.card.spare.push(frame);
                break;
            };
            frame.truncate(length);
            received += 1;
            self.card.to_guest.push_back(frame);
        }
        self.frames += received;
        self.in_nat += begun.elapsed();
        let now = smoltcp::time::Instant::from_micros(self.begun.elapsed().as_micros() as i64);
        self.iface.poll(now, &mut self.card, &mut self.sockets);
        let idle = received == 0 && self.card.from_guest.is_empty();
        let begun = Instant::now();
        while let Some(frame) = self.card.from_guest.pop_front() {
            self.nat.transmit(&frame);
            self.frames += 1;
            self.card.spare.push(frame);
        }
        self.in_nat += begun.elapsed();
        if idle {
            let timeout = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            let mut polled = [PollFd::new(&self.nat, PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&timeout)).expect("poll");
        }
    }

    fn connect(&mut self, port: u16, local: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 20]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let context = self.iface.context();
        socket.connect(context, IpEndpoint::from((GATEWAY, port)), local).expect("connect");
        self.sockets.add(socket)
    }

    fn report(&self, what: &str, bytes: usize, wall: Duration) {
        let gigabits = |time: Duration| bytes as f64 * 8.0 / 1e9 / time.as_secs_f64();
        let stats = self.nat.handle().stats();
        println!(
            "{what:<28} {:6.2} Gbit/s in all, {:6.2} Gbit/s NAT alone, {:5.0} ns a frame, {} frames, {} bytes again",
            gigabits(wall),
            gigabits(self.in_nat),
            self.in_nat.as_nanos() as f64 / self.frames as f64,
            self.frames,
            stats.tcp_retransmitted_bytes,
        );
    }
}

fn download(mtu: u16, total: usize, flows: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let each = total / flows;
    for _ in 0..flows {
        let listener = listener.try_clone().expect("a descriptor");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let block = vec![0x5a; 256 << 10];
            let mut left = each;
            while left > 0 {
                left -= stream.write(&block[..left.min(block.len())]).expect("a reader");
            }
        });
    }
    let mut guest = Guest::new(mtu);
    let sockets: Vec<_> = (0..flows).map(|i| guest.connect(port, 40_000 + i as u16)).collect();
    let begun = Instant::now();
    let mut got = 0;
    while got < each * flows {
        guest.step();
        for &handle in &sockets {
            let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            while socket.can_recv() {
                got += socket.recv(|data| (data.len(), data.len())).expect("data");
            }
        }
    }
    guest.report(&format!("download mtu {mtu} x{flows}"), got, begun.elapsed());
}

fn upload(mtu: u16, total: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut block = vec![0; 256 << 10];
        let mut got = 0;
        while got < total {
            got += stream.read(&mut block).expect("data");
        }
    });
    let mut guest = Guest::new(mtu);
    let handle = guest.connect(port, 40_000);
    let begun = Instant::now();
    let mut sent = 0;
    while !server.is_finished() {
        guest.step();
        let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
        while sent < total && socket.can_send() {
            let count = socket.send(|room| (room.len().min(total - sent), room.len().min(total - sent)));
            sent += count.expect("a connection");
        }
    }
    guest.report(&format!("upload mtu {mtu}"), total, begun.elapsed());
}

fn round_trips(count: u32) {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("its number").port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..length], from);
        }
    });
    let mut guest = Guest::new(1500);
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 64 << 10]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(5000).expect("a port");
    let handle = guest.sockets.add(socket);
    let begun = Instant::now();
    for _ in 0..count {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(&[0; 64], IpEndpoint::from((GATEWAY, port))).expect("room");
        while !guest.sockets.get_mut::<udp::Socket<'_>>(handle).can_recv() {
            guest.step();
        }
        guest.sockets.get_mut::<udp::Socket<'_>>(handle).recv().expect("an answer");
    }
    let each = begun.elapsed() / count;
    let alone = guest.in_nat / count;
    println!("UDP round trip               {each:?} in all, {alone:?} in the NAT");
}

fn main() {
    let mebibytes: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(512);
    let total = mebibytes << 20;
    let only: Option<u16> = std::env::args().nth(2).and_then(|text| text.parse().ok());
    for mtu in only.map_or(vec![1500, 9000, 65_520], |mtu| vec![mtu]) {
        download(mtu, total, 1);
        upload(mtu, total);
    }
    if only.is_some() {
        return;
    }
    download(1500, total, 16);
    round_trips(20_000);
}
