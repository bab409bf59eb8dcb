//! The network as a guest sees it.
//!
//! Goal: everything that a guest does through the router works, and what cannot work fails as it would in a
//! real network. Method: a guest made of smoltcp talks to servers that the tests start on the host's loopback.

mod guest;
mod tcp;
mod udp;

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use net::{Backend, HOST_NAME, NatConfig, NetErrorKind, Resolvers};
use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::socket::{dhcpv4, dns, icmp};
use smoltcp::wire::{DnsQueryType, Icmpv4Packet, Icmpv4Repr, IpAddress};

use guest::{DNS, GATEWAY, GUEST, Guest};

pub(crate) fn config(text: &str) -> NatConfig {
    text.parse().unwrap()
}

#[test]
fn lease_by_dhcp() {
    let mut guest = Guest::without_address(config("mtu=1400"));
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router, servers) =
        guest.run("dhcp", |guest| match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                Some((lease.address, lease.router, lease.dns_servers.to_vec()))
            }
            _ => None,
        });
    assert_eq!((address.address(), address.prefix_len()), (GUEST, 24));
    assert_eq!(router, Some(GATEWAY));
    assert_eq!(servers, [DNS]);
    assert_eq!(guest.nat.handle().stats().dhcp_acks, 1);
}

/// A name server that answers every question for an address with `address`.
fn name_server(address: Ipv4Addr) -> std::net::SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let bound = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut reply = buffer[..length].to_vec();
            reply[2] |= 0x80;
            reply[7] = 1;
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            reply.extend(address.octets());
            // A forged answer with another identifier first.
            let mut forged = reply.clone();
            forged[0] ^= 0xff;
            *forged.last_mut().unwrap() ^= 0xff;
            socket.send_to(&forged, from).unwrap();
            socket.send_to(&reply, from).unwrap();
        }
    });
    bound
}

fn resolve(guest: &mut Guest, name: &str) -> Result<Vec<IpAddress>, dns::GetQueryResultError> {
    let handle = guest.sockets.add(dns::Socket::new(&[IpAddress::Ipv4(DNS)], vec![]));
    let context = guest.iface.context();
    let query =
        guest.sockets.get_mut::<dns::Socket<'_>>(handle).start_query(context, name, DnsQueryType::A).unwrap();
    let result = guest.run("resolve", |guest| {
        match guest.sockets.get_mut::<dns::Socket<'_>>(handle).get_query_result(query) {
            Ok(addresses) => Some(Ok(addresses.to_vec())),
            Err(dns::GetQueryResultError::Pending) => None,
            Err(error) => Some(Err(error)),
        }
    });
    // It would take the answers to others' questions.
    guest.sockets.remove(handle);
    result
}

#[test]
fn names_are_resolved_by_the_hosts_server_and_the_hosts_name_here() {
    let answer = Ipv4Addr::new(192, 0, 2, 77);
    let resolvers = Resolvers::Fixed(vec![name_server(answer)]);
    let mut guest = Guest::new(NatConfig { resolvers, ..NatConfig::default() });
    assert_eq!(resolve(&mut guest, "www.example.com").unwrap(), [IpAddress::Ipv4(answer)]);
    assert_eq!(resolve(&mut guest, HOST_NAME).unwrap(), [IpAddress::Ipv4(GATEWAY)]);
    assert!(resolve(&mut guest, "nobody.arnia.internal").is_err());
}

#[test]
fn a_dead_name_server_is_passed_over_and_none_left_is_a_failure() {
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let answer = Ipv4Addr::new(192, 0, 2, 78);
    let resolvers = Resolvers::Fixed(vec![dead, name_server(answer)]);
    let mut guest = Guest::new(NatConfig { resolvers, ..NatConfig::default() });
    assert_eq!(resolve(&mut guest, "www.example.com").unwrap(), [IpAddress::Ipv4(answer)]);

    let mut guest = Guest::new(NatConfig { resolvers: Resolvers::Fixed(vec![dead]), ..NatConfig::default() });
    let socket = guest.add_udp(5000);
    let (reply, from) =
        guest.exchange(socket, (DNS, 53), b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01");
    assert_eq!(from.port, 53);
    assert_eq!(reply[..2], [0x12, 0x34]);
    assert_eq!((reply[2] & 0x80, reply[3] & 0x0f), (0x80, 2), "SERVFAIL");
    assert_eq!(guest.nat.handle().stats().dns_failed, 1);
}

fn ping(guest: &mut Guest, to: Ipv4Addr) -> Icmp {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(0x77)).unwrap();
    let handle = guest.sockets.add(socket);
    let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
    let request = Icmpv4Repr::EchoRequest { ident: 0x77, seq_no: 9, data: b"are you there?" };
    let payload = socket.send(request.buffer_len(), IpAddress::Ipv4(to)).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(payload), &Default::default());
    guest.run("echo", |guest| {
        if let Some((code, destination)) = guest.unreachable.pop() {
            assert_eq!(destination, to);
            return Some(Icmp::Unreachable(code));
        }
        let (bytes, from) = guest.sockets.get_mut::<icmp::Socket<'_>>(handle).recv().ok()?;
        let packet = Icmpv4Packet::new_checked(bytes).unwrap();
        let reply = Icmpv4Repr::parse(&packet, &Default::default()).unwrap();
        assert_eq!(reply, Icmpv4Repr::EchoReply { ident: 0x77, seq_no: 9, data: b"are you there?" });
        assert_eq!(from, IpAddress::Ipv4(to));
        Some(Icmp::Reply)
    })
}

#[derive(Debug, PartialEq)]
enum Icmp {
    Reply,
    Unreachable(u8),
}

#[test]
fn echo_of_the_gateway_and_beyond() {
    let mut guest = Guest::new(config(""));
    assert_eq!(ping(&mut guest, GATEWAY), Icmp::Reply);
    assert_eq!(ping(&mut guest, DNS), Icmp::Reply);
    // Never forwarded.
    assert_eq!(ping(&mut guest, Ipv4Addr::new(169, 254, 169, 254)), Icmp::Unreachable(13));
    // Prohibited by the configuration.
    let mut guest = Guest::new(config("restrict=on"));
    assert_eq!(ping(&mut guest, Ipv4Addr::new(192, 0, 2, 1)), Icmp::Unreachable(13));
    assert_eq!(ping(&mut guest, GATEWAY), Icmp::Reply);
}

#[test]
fn a_restricted_guest_gets_no_names_but_the_local_ones() {
    let mut guest = Guest::new(config("restrict=on"));
    let socket = guest.add_udp(5000);
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let (reply, _) = guest.exchange(socket, (DNS, 53), question);
    assert_eq!((reply[2] & 0x80, reply[3] & 0x0f), (0x80, 5), "REFUSED");
    assert_eq!(resolve(&mut guest, HOST_NAME).unwrap(), [IpAddress::Ipv4(GATEWAY)]);
}

#[test]
fn a_packet_at_the_end_of_its_life_is_told_of_by_the_gateway() {
    let mut guest = Guest::new(config(""));
    let socket = guest.add_udp(5000);
    guest.udp(socket).set_hop_limit(Some(1));
    let to = smoltcp::wire::IpEndpoint::from((Ipv4Addr::new(192, 0, 2, 1), 33_434));
    guest.udp(socket).send_slice(b"trace", to).unwrap();
    let told = guest.run("time exceeded", |guest| guest.time_exceeded.pop());
    assert_eq!(told, (GATEWAY, Ipv4Addr::new(192, 0, 2, 1)));
}

#[test]
fn frames_that_are_not_for_the_router_are_counted_and_nothing_else() {
    let mut guest = Guest::new(config(""));
    let mut frame = vec![0xa6, 0x47, 10, 0, 2, 2, 0xa6, 0x41, 0x72, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60; 60]);
    guest.nat.transmit(&frame);
    frame[0] = 0x02;
    guest.nat.transmit(&frame);
    guest.nat.transmit(&frame[..9]);
    let stats = guest.nat.handle().stats();
    assert_eq!((stats.drops_unsupported, stats.drops_not_for_us, stats.drops_malformed), (1, 1, 1));
    assert!(guest.nat.receive(&mut [0; 1514]).is_none());
}

/// Tells whether the descriptor asks for `poll` now.
fn is_readable(guest: &Guest) -> bool {
    let mut polled = [PollFd::new(&guest.nat, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_is_work() {
    let mut guest = Guest::new(config(""));
    assert!(!is_readable(&guest));
    // An ARP request for the gateway.
    let mut request = vec![0xff; 6];
    request.extend([0xa6, 0x41, 0x72, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0xa6, 0x41, 0x72, 0, 0, 1]);
    request.extend(GUEST.octets());
    request.extend([0; 6]);
    request.extend(GATEWAY.octets());
    guest.nat.transmit(&request);
    assert!(is_readable(&guest), "there is an answer");
    guest.nat.poll();
    assert!(is_readable(&guest), "it was not taken yet");
    let mut frame = [0; 1514];
    assert!(guest.nat.receive(&mut frame).is_some());
    assert!(guest.nat.receive(&mut frame).is_none());
    assert!(!is_readable(&guest));

    let handle = guest.nat.handle();
    let status = handle.add_forward(&"0:22".parse().unwrap()).unwrap();
    assert!(is_readable(&guest), "a command");
    guest.nat.poll();
    assert!(!is_readable(&guest));
    std::net::TcpStream::connect(status.forward.listen).unwrap();
    assert!(is_readable(&guest), "a connection");
}

#[test]
fn forwarded_ports_come_and_go() {
    let mut guest = Guest::new(config("forward=0:22,forward=0:53/udp"));
    let handle = guest.nat.handle();
    let listed = handle.forwards();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|status| status.forward.listen.port() != 0));
    assert_eq!(listed[0].forward.guest_address, Some(GUEST));

    let again = listed[0].forward.clone();
    let error = handle.add_forward(&again).unwrap_err();
    assert_eq!(error.kind(), NetErrorKind::Bind);
    assert!(error.to_string().contains(&again.listen.port().to_string()));

    handle.remove_forward(listed[0].id).unwrap();
    assert_eq!(handle.remove_forward(listed[0].id).unwrap_err().kind(), NetErrorKind::NotFound);
    guest.nat.poll();
    handle.add_forward(&again).expect("the port is free again");
    assert_eq!(handle.forwards().len(), 2);
    drop(guest);
    assert!(handle.add_forward(&"0:23".parse().unwrap()).is_err(), "the network is gone");
}

#[test]
fn a_network_that_cannot_listen_is_not_made() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = net::Nat::new(config(&format!("forward={port}:22"))).err().unwrap();
    assert_eq!(error.kind(), NetErrorKind::Bind);
}
