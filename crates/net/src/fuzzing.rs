//! Bodies of fuzz targets: what a guest sends must never panic, hang, or grow the host without bound.
//!
//! `fuzz/` holds the cargo-fuzz project that calls them; a unit test drives each with seeded inputs, so that a
//! plain `cargo test` exercises them too.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::nat::tcp::buffer::Pools;
use crate::nat::tcp::endpoint::{Endpoint, EndpointSpec, Flags, Outgoing, Segment};
use crate::nat::tcp::seq::Seq;
use crate::nat::wire::{self, ETHERNET, IPV4, Ipv4Out, Link, UDP};
use crate::switch::{PortKey, SwitchPort};
use crate::{Backend, HostLoopback, MacAddress, Nat, NatConfig, NatLimits, Outside};

const GUEST_MAC: MacAddress = MacAddress([0xa6, 0x41, 0x72, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Frames taken from one input.
const FRAMES_MAX: usize = 64;

/// Takes numbers out of the input; zeroes when it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
}

/// Makes a network that cannot reach beyond itself, so that no input reaches beyond the fuzzer.
fn closed_network() -> Nat {
    let limits = NatLimits { tcp_flows_max: 16, udp_flows_max: 8, ..NatLimits::default() };
    let config = NatConfig {
        outside: Outside::Restricted,
        host_loopback: HostLoopback::Denied,
        limits,
        ..NatConfig::default()
    };
    Nat::new(config).expect("the host gives a few descriptors")
}

/// Frames from a card of a switch: nothing passes as another's.
pub fn switch_frames(data: &[u8]) {
    let mut input = Input(data);
    let port = SwitchPort {
        key: PortKey([0; 32]),
        mac: GUEST_MAC,
        address: (input.byte() & 1 != 0).then_some(GUEST),
        name: "card".into(),
    };
    for _ in 0..FRAMES_MAX {
        if input.0.is_empty() {
            break;
        }
        // Mostly with its own address, else nothing would come far.
        let (spoof, length) = (input.byte() == 0, usize::from(input.word() % 200));
        let mut frame = input.take(length).to_vec();
        if let (false, Some(source)) = (spoof, frame.get_mut(6..12)) {
            source.copy_from_slice(&GUEST_MAC.0);
        }
        crate::switch::fuzz(&frame, &port);
    }
}

fn drain(nat: &mut Nat, mut each: impl FnMut(&[u8])) {
    let mut frame = [0; 1514];
    let mut count = 0;
    while let Some(length) = nat.receive(&mut frame) {
        assert!(length <= nat.frame_size_max());
        each(&frame[..length]);
        count += 1;
        assert!(count < 10_000, "the network never stops talking");
    }
}

/// Frames as they come, each with its length before it, to a network that cannot reach beyond itself: the
/// parsers, ARP, DHCP, local DNS, ICMP, reassembly.
///
/// Half of them get a valid beginning and valid sums, or nothing would come past the first checks.
pub fn frames(data: &[u8]) {
    let mut nat = closed_network();
    let mut input = Input(data);
    for _ in 0..FRAMES_MAX {
        if input.0.is_empty() {
            break;
        }
        let kind = input.byte();
        let length = usize::from(input.word()) % 1600;
        let bytes = input.take(length);
        match kind % 4 {
            0 => nat.transmit(bytes),
            1 => {
                let protocol = input.byte();
                nat.transmit(&ipv4_frame(GUEST, GATEWAY, protocol, None, bytes));
            }
            2 => {
                let destination = match kind % 3 {
                    0 => SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
                    1 => SocketAddrV4::new(DNS, 53),
                    _ => SocketAddrV4::new(GATEWAY, input.word()),
                };
                nat.transmit(&udp_frame(destination, bytes));
            }
            _ => {
                let offset = usize::from(input.word()) % 8192 * 8;
                let fragment = Some((u16::from(input.byte() % 4), offset, kind & 0x80 != 0));
                nat.transmit(&ipv4_frame(GUEST, GATEWAY, wire::PROTOCOL_UDP, fragment, bytes));
            }
        }
        nat.poll();
        drain(&mut nat, |_| {});
    }
}

fn link() -> Link {
    Link { own: GUEST_MAC, guest: MacAddress::of_router(GATEWAY) }
}

fn ipv4_frame(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: Option<(u16, usize, bool)>,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4 + payload.len()];
    frame[ETHERNET + IPV4..].copy_from_slice(payload);
    let out = Ipv4Out { source, destination, protocol, fragment };
    wire::write_ipv4(&mut frame, link(), out, payload.len());
    frame
}

fn udp_frame(destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; UDP + payload.len()];
    datagram[UDP..].copy_from_slice(payload);
    let source = SocketAddrV4::new(GUEST, 68);
    wire::write_udp(&mut datagram, source, destination);
    ipv4_frame(GUEST, *destination.ip(), wire::PROTOCOL_UDP, None, &datagram)
}

/// Segments with any numbers and flags to one TCP endpoint, with time passing and both programs at work.
pub fn tcp_endpoint(data: &[u8]) {
    let mut input = Input(data);
    let mut now = Instant::now();
    let mut pools = Pools::new(256 << 10);
    let spec = EndpointSpec { iss: Seq(u32::MAX - 100), mss: 1460, rx_limit: 64 << 10 };
    let first = segment(&mut input, Seq(0), Seq(0));
    let mut endpoint = if input.byte() & 1 == 0 {
        Endpoint::connect(spec, now)
    } else {
        Endpoint::accept(&first, spec, now)
    };
    // Numbers near what the endpoint said last, so that not all are out of the window.
    let (mut ack, mut seq) = (spec.iss, Seq(0));
    for _ in 0..512 {
        if input.0.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..4 => {
                let segment = segment(&mut input, seq, ack);
                endpoint.on_segment(&segment, now, &mut pools);
            }
            4 => {
                now += Duration::from_millis(u64::from(input.word()));
                endpoint.on_deadline(now);
            }
            5 => {
                let end = endpoint.tx.len() + usize::from(input.word());
                if endpoint.end().is_none() && endpoint.tx.try_reserve(end, &mut pools.tx) {
                    let count = end - endpoint.tx.len();
                    endpoint.tx.extend(count);
                }
            }
            6 => {
                let count = endpoint.rx.len().min(usize::from(input.word()));
                endpoint.rx.consume(count, &mut pools.rx);
                endpoint.trim_rx(&mut pools);
                endpoint.on_rx_taken();
            }
            _ => match input.byte() % 16 {
                0 => endpoint.close(),
                1 => endpoint.abort(),
                _ => {}
            },
        }
        let mut count = 0;
        while let Some(out) = endpoint.next_segment(now, 1460) {
            assert!(out.data.end <= endpoint.tx.len());
            (ack, seq) = (out.seq.plus(out.data.len() as u32), out.ack.unwrap_or(seq));
            count += 1;
            assert!(count < 4096, "the endpoint never stops talking");
        }
        assert!(
            endpoint.end().is_some()
                || endpoint.deadline().is_none_or(|at| at > now - Duration::from_secs(1))
        );
        assert!(pools.in_use() <= 256 << 10);
    }
    endpoint.release(&mut pools);
    assert_eq!(pools.in_use(), 0);
}

fn segment<'a>(input: &mut Input<'a>, seq: Seq, ack: Seq) -> Segment<'a> {
    let flags = input.byte();
    let near = |input: &mut Input<'_>, base: Seq| match input.byte() {
        0..192 => base.plus(u32::from(input.byte() % 4)),
        192..224 => base.plus(u32::from(input.word())),
        224..240 => base.minus(u32::from(input.word())),
        _ => Seq(u32::from(input.word()) << 16 | u32::from(input.word())),
    };
    let seq = near(input, seq);
    let ack = near(input, ack);
    let window = input.word();
    let length = usize::from(input.word() % 3000);
    Segment {
        seq,
        ack: (flags & 0x60 != 0x20).then_some(ack),
        flags: Flags {
            syn: flags & 0x0f == 1,
            fin: flags & 0x0f == 2,
            rst: flags & 0x0f == 3,
            psh: flags & 0x10 != 0,
        },
        window,
        mss: (flags & 0x80 != 0).then(|| input.word()),
        window_shift: (flags & 0x40 != 0).then(|| input.byte()),
        payload: input.take(length),
    }
}

/// A guest that connects to a server on the host's loopback and then does as the input says, while the server
/// does too: the splice between segments and sockets.
pub fn tcp_splice(data: &[u8]) {
    let mut input = Input(data);
    let listener = TcpListener::bind("127.0.0.1:0").expect("the host gives a port");
    let port = listener.local_addr().expect("it has a number").port();
    let limits = NatLimits { tcp_flows_max: 8, ..NatLimits::default() };
    let mut nat =
        Nat::new(NatConfig { limits, ..NatConfig::default() }).expect("the host gives a few descriptors");
    let remote = SocketAddrV4::new(GATEWAY, port);
    let guest = SocketAddrV4::new(GUEST, 40_000);
    let (mut seq, mut ack) = (Seq(1), Seq(0));
    transmit_segment(&mut nat, guest, remote, &outgoing(seq, None, 1), &[]);
    seq = seq.plus(1);
    let mut server: Option<TcpStream> = None;
    for _ in 0..256 {
        if input.0.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..4 => {
                let flags = input.byte();
                let length = usize::from(input.word() % 1400);
                let payload = input.take(length);
                let jump = if flags & 0x80 != 0 { u32::from(input.byte()) } else { 0 };
                let out =
                    Outgoing { window: input.word(), ..outgoing(seq.plus(jump), Some(ack), flags & 0x0f) };
                transmit_segment(&mut nat, guest, remote, &out, payload);
                if jump == 0 && flags & 0x0f == 0 {
                    seq = seq.plus(payload.len() as u32);
                }
            }
            4 => {
                if server.is_none() {
                    let _ = listener.set_nonblocking(true);
                    server = listener.accept().ok().map(|(stream, _)| stream);
                    if let Some(stream) = &server {
                        let _ = stream.set_nonblocking(true);
                    }
                }
            }
            5 => {
                if let Some(server) = &mut server {
                    let _ = server.write(&vec![7; usize::from(input.word())]);
                }
            }
            6 => {
                if let Some(server) = &mut server {
                    let _ = server.read(&mut [0; 4096]);
                }
            }
            _ => match input.byte() % 8 {
                0 => server = None,
                1 => {
                    if let Some(server) = &server {
                        let _ = server.shutdown(std::net::Shutdown::Write);
                    }
                }
                _ => {}
            },
        }
        nat.poll();
        drain(&mut nat, |frame| {
            if let Ok(wire::Packet::Ipv4(ip)) = wire::parse(frame, GUEST_MAC)
                && let Ok(tcp) = wire::parse_tcp(ip.source, ip.destination, ip.payload)
            {
                ack = tcp.segment.seq.plus(tcp.segment.length());
                seq = tcp.segment.ack.unwrap_or(seq);
            }
        });
        let stats = nat.handle().stats();
        assert!(stats.tcp_active <= 8 && stats.tcp_buffered_bytes <= 64 << 20);
    }
}

fn outgoing(seq: Seq, ack: Option<Seq>, flags: u8) -> Outgoing {
    Outgoing {
        seq,
        ack,
        flags: Flags { syn: flags == 1, fin: flags == 2, rst: flags == 3, psh: flags & 4 != 0 },
        window: u16::MAX,
        mss: Some(1460),
        window_shift: Some(3),
        data: 0..0,
    }
}

fn transmit_segment(
    nat: &mut Nat,
    guest: SocketAddrV4,
    remote: SocketAddrV4,
    out: &Outgoing,
    payload: &[u8],
) {
    let out = Outgoing { data: 0..payload.len(), ..out.clone() };
    let start = wire::tcp_payload_start(&out);
    let mut frame = vec![0; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    wire::write_tcp(&mut frame, link(), guest, remote, &out);
    nat.transmit(&frame);
}

#[cfg(test)]
mod tests {
    /// Calls a fuzz body with seeded inputs of many lengths.
    fn drive(body: fn(&[u8]), count: u64) {
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..count {
            let length = (next() % 6000) as usize;
            // Runs of one byte among random ones, as real inputs have.
            let mut data = Vec::with_capacity(length);
            while data.len() < length {
                let word = next();
                let count = if word & 0xff < 32 { (word >> 8 & 0x3f) as usize } else { 1 };
                data.extend(std::iter::repeat_n((word >> 16) as u8, count));
            }
            body(&data);
        }
    }

    #[test]
    fn switch_frames() {
        drive(super::switch_frames, 3000);
    }

    #[test]
    fn frames() {
        drive(super::frames, 3000);
    }

    #[test]
    fn tcp_endpoint() {
        drive(super::tcp_endpoint, 5000);
    }

    #[test]
    fn tcp_splice() {
        drive(super::tcp_splice, 300);
    }
}
