//! UDP through the router.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use net::{NatConfig, NatLimits};
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpAddress};

use crate::config;
use crate::guest::{GATEWAY, GUEST, Guest, pattern};

/// Sends everything back to where it came from.
fn echo() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).unwrap();
        }
    });
    port
}

#[test]
fn datagrams_there_and_back_in_pieces_if_need_be() {
    let port = echo();
    let mut guest = Guest::new(config(""));
    let socket = guest.add_udp(5000);
    for length in [0, 1, 1472, 1473, 2000, 2960, 3900] {
        let data = pattern(length);
        let (reply, from) = guest.exchange(socket, (GATEWAY, port), &data);
        assert_eq!((from.addr, from.port), (IpAddress::Ipv4(GATEWAY), port));
        assert!(reply == data, "length {length}");
    }
    assert_eq!(guest.nat.handle().stats().udp_mapped, 1);
}

#[test]
fn several_ports_and_peers_are_kept_apart() {
    let ports = [echo(), echo()];
    let mut guest = Guest::new(config(""));
    let sockets: Vec<_> = (0..10).map(|i| guest.add_udp(6000 + i)).collect();
    for (i, &socket) in sockets.iter().enumerate() {
        for port in ports {
            let message = format!("from {i} to {port}");
            let (reply, from) = guest.exchange(socket, (GATEWAY, port), message.as_bytes());
            assert_eq!((reply, from.port), (message.into_bytes(), port));
        }
    }
    let stats = guest.nat.handle().stats();
    assert_eq!((stats.udp_mapped, stats.udp_active), (10, 10));
}

#[test]
fn strangers_are_not_let_in() {
    let mut guest = Guest::new(config(""));
    let socket = guest.add_udp(5000);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    guest.udp(socket).send_slice(b"hello", smoltcp::wire::IpEndpoint::from((GATEWAY, port))).unwrap();
    guest.run("hello", |guest| (guest.nat.handle().stats().udp_mapped == 1).then_some(()));
    let mut buffer = [0; 16];
    let (_, mapped) = server.recv_from(&mut buffer).unwrap();
    // Another program of the host knows the port and sends to it, before the answer comes.
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"forged", mapped).unwrap();
    server.send_to(b"answer", mapped).unwrap();
    let (reply, from) = guest.receive(socket);
    assert_eq!((reply, from.port), (b"answer".to_vec(), port));
    assert_eq!(guest.nat.handle().stats().drops_denied, 1);
}

#[test]
fn an_unreachable_port_is_told() {
    let mut guest = Guest::new(config(""));
    let socket = guest.add_udp(5000);
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut errors = icmp::Socket::new(buffer(), buffer());
    errors.bind(icmp::Endpoint::Udp((GUEST, 5000).into())).unwrap();
    let errors = guest.sockets.add(errors);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Once by the host's own ICMP, once because the way is closed.
    for port in [closed, 9] {
        let to = if port == 9 { Ipv4Addr::new(10, 0, 2, 3) } else { GATEWAY };
        guest.udp(socket).send_slice(b"anybody?", smoltcp::wire::IpEndpoint::from((to, port))).unwrap();
        guest.run("unreachable", |guest| {
            let (bytes, from) = guest.sockets.get_mut::<icmp::Socket<'_>>(errors).recv().ok()?;
            assert_eq!(from, IpAddress::Ipv4(GATEWAY));
            let packet = Icmpv4Packet::new_checked(bytes).unwrap();
            let Icmpv4Repr::DstUnreachable { reason, header, data } =
                Icmpv4Repr::parse(&packet, &Default::default()).unwrap()
            else {
                panic!()
            };
            assert_eq!(reason, Icmpv4DstUnreachable::PortUnreachable);
            assert_eq!((header.src_addr, header.dst_addr), (GUEST, to));
            assert_eq!(data[..4], [5000u16.to_be_bytes(), port.to_be_bytes()].concat());
            assert!(data.ends_with(b"anybody?"));
            Some(())
        });
    }
}

#[test]
fn old_mappings_make_room() {
    let port = echo();
    let limits = NatLimits { udp_flows_max: 4, ..NatLimits::default() };
    let mut guest = Guest::new(NatConfig { limits, ..NatConfig::default() });
    for i in 0..20 {
        let socket = guest.add_udp(7000 + i);
        assert_eq!(guest.exchange(socket, (GATEWAY, port), b"x").0, b"x");
        assert!(guest.nat.handle().stats().udp_active <= 4);
    }
}

#[test]
fn a_forwarded_port_leads_in_and_answers_lead_out() {
    for options in ["forward=0:53/udp", "forward=0:53/udp,restrict=on"] {
        let mut guest = Guest::new(config(options));
        let listen = guest.nat.handle().forwards()[0].forward.listen;
        let server = guest.add_udp(53);
        // The guest must be known: UDP does not wait for ARP.
        guest.udp(server).send_slice(b"", smoltcp::wire::IpEndpoint::from((GATEWAY, 9))).unwrap();
        guest.settle();
        let clients = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        for (i, client) in clients.iter().enumerate() {
            client.send_to(format!("question {i}").as_bytes(), listen).unwrap();
            let (question, from) = guest.receive(server);
            assert_eq!(question, format!("question {i}").into_bytes());
            assert_eq!(from.addr, IpAddress::Ipv4(GATEWAY));
            assert_eq!(from.port, client.local_addr().unwrap().port());
            guest.udp(server).send_slice(format!("answer {i}").as_bytes(), from).unwrap();
            guest.settle();
            let mut buffer = [0; 64];
            let (length, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (format!("answer {i}").as_bytes(), listen));
        }
    }
}
