//! Frames as bytes: taking apart what the guest sends, putting together what it gets. No behaviour here.
//!
//! Field access is smoltcp's; the checks and the sums are ours.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, TcpOption, TcpPacket, UdpPacket,
};

use super::tcp::endpoint::{Flags, Outgoing, Segment};
use super::tcp::seq::Seq;
use crate::MacAddress;
use crate::checksum::{self, Checksum};

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// Length of a UDP header.
pub(crate) const UDP: usize = 8;
/// Length of a TCP header without options.
pub(crate) const TCP: usize = 20;
/// Length of the options that our SYN carries: segment size, padding, window scale.
const TCP_SYN_OPTIONS: usize = 8;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// Time to live of what we send (RFC 1700).
const TTL: u8 = 64;

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    Malformed,
    NotForUs,
    Unsupported,
}

/// What a frame carries.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    Arp(Arp),
    Ipv4(Ipv4<'a>),
}

/// An ARP packet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) request: bool,
    pub(crate) source_mac: MacAddress,
    pub(crate) source: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

/// An IPv4 packet (RFC 791), or a fragment of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv4<'a> {
    pub(crate) source_mac: MacAddress,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) ident: u16,
    pub(crate) more_fragments: bool,
    /// In bytes.
    pub(crate) fragment_offset: usize,
    /// The header as it came, options included.
    pub(crate) header: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Ipv4<'_> {
    pub(crate) fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }
}

/// Takes a frame apart that is for the station `own` or for all.
pub(crate) fn parse(frame: &[u8], own: MacAddress) -> Result<Packet<'_>, Reject> {
    let ethernet = EthernetFrame::new_checked(frame).map_err(|_| Reject::Malformed)?;
    let source_mac = MacAddress(ethernet.src_addr().0);
    if !source_mac.is_station() {
        return Err(Reject::Malformed);
    }
    let destination = MacAddress(ethernet.dst_addr().0);
    if destination != own && destination != MacAddress::BROADCAST {
        return Err(Reject::NotForUs);
    }
    match ethernet.ethertype() {
        EthernetProtocol::Arp => parse_arp(ethernet.payload(), source_mac).map(Packet::Arp),
        EthernetProtocol::Ipv4 => parse_ipv4(ethernet.payload(), source_mac).map(Packet::Ipv4),
        _ => Err(Reject::Unsupported),
    }
}

fn parse_arp(bytes: &[u8], frame_source: MacAddress) -> Result<Arp, Reject> {
    let packet = ArpPacket::new_checked(bytes).map_err(|_| Reject::Malformed)?;
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return Err(Reject::Unsupported);
    };
    let source_mac = MacAddress(source_hardware_addr.0);
    if source_mac != frame_source {
        return Err(Reject::NotForUs);
    }
    Ok(Arp {
        request: operation == ArpOperation::Request,
        source_mac,
        source: source_protocol_addr,
        target: target_protocol_addr,
    })
}

fn parse_ipv4(bytes: &[u8], source_mac: MacAddress) -> Result<Ipv4<'_>, Reject> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Reject::Malformed)?;
    let header_len = usize::from(packet.header_len());
    let total_len = usize::from(packet.total_len());
    if packet.version() != 4 || header_len < IPV4 || total_len < header_len {
        return Err(Reject::Malformed);
    }
    let header = bytes.get(..header_len).ok_or(Reject::Malformed)?;
    // What follows the packet is Ethernet's padding.
    let payload = bytes.get(header_len..total_len).ok_or(Reject::Malformed)?;
    if checksum::of(header) != [0, 0] {
        return Err(Reject::Malformed);
    }
    if has_source_route(&header[IPV4..]) {
        return Err(Reject::Unsupported);
    }
    Ok(Ipv4 {
        source_mac,
        source: packet.src_addr(),
        destination: packet.dst_addr(),
        protocol: packet.next_header().into(),
        ttl: packet.hop_limit(),
        ident: packet.ident(),
        more_fragments: packet.more_frags(),
        fragment_offset: usize::from(packet.frag_offset()),
        header,
        payload,
    })
}

/// Tells whether IPv4 options prescribe a route (RFC 791 §3.1). All other options may be ignored.
fn has_source_route(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        match *options {
            [] | [END, ..] => return false,
            [NOP, ..] => options = &options[1..],
            [LOOSE | STRICT, ..] => return true,
            [_, length, ..] if length >= 2 && usize::from(length) <= options.len() => {
                options = &options[usize::from(length)..];
            }
            _ => return false,
        }
    }
}

/// A TCP segment with the ports it goes between.
#[derive(Debug)]
pub(crate) struct TcpIn<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) segment: Segment<'a>,
}

/// Takes a TCP segment apart.
pub(crate) fn parse_tcp<'a>(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload: &'a [u8],
) -> Result<TcpIn<'a>, Reject> {
    let packet = TcpPacket::new_checked(payload).map_err(|_| Reject::Malformed)?;
    let mut sum = Checksum::pseudo(source, destination, PROTOCOL_TCP, payload.len());
    sum.add(payload);
    if !sum.verifies() || packet.src_port() == 0 || packet.dst_port() == 0 {
        return Err(Reject::Malformed);
    }
    let mut segment = Segment {
        seq: Seq(packet.seq_number().0 as u32),
        ack: packet.ack().then(|| Seq(packet.ack_number().0 as u32)),
        flags: Flags { syn: packet.syn(), fin: packet.fin(), rst: packet.rst(), psh: packet.psh() },
        window: packet.window_len(),
        mss: None,
        window_shift: None,
        payload: packet.payload(),
    };
    if packet.syn() {
        let mut options = packet.options();
        while let Ok((rest, option)) = TcpOption::parse(options) {
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(size) => segment.mss = Some(size),
                TcpOption::WindowScale(shift) => segment.window_shift = Some(shift),
                _ => {}
            }
            if rest.is_empty() {
                break;
            }
            options = rest;
        }
    }
    Ok(TcpIn { source_port: packet.src_port(), destination_port: packet.dst_port(), segment })
}

/// A UDP datagram.
#[derive(Debug)]
pub(crate) struct UdpIn<'a> {
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) payload: &'a [u8],
}

/// Takes a UDP datagram apart.
pub(crate) fn parse_udp<'a>(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload: &'a [u8],
) -> Result<UdpIn<'a>, Reject> {
    let packet = UdpPacket::new_checked(payload).map_err(|_| Reject::Malformed)?;
    let length = usize::from(packet.len());
    let datagram = payload.get(..length).filter(|datagram| datagram.len() >= UDP).ok_or(Reject::Malformed)?;
    // A sum of zero means none (RFC 768).
    if packet.checksum() != 0 {
        let mut sum = Checksum::pseudo(source, destination, PROTOCOL_UDP, length);
        sum.add(datagram);
        if !sum.verifies() {
            return Err(Reject::Malformed);
        }
    }
    // A source port of zero cannot be answered; a destination port of zero is nobody's.
    if packet.src_port() == 0 || packet.dst_port() == 0 {
        return Err(Reject::Malformed);
    }
    Ok(UdpIn {
        source: SocketAddrV4::new(source, packet.src_port()),
        destination: SocketAddrV4::new(destination, packet.dst_port()),
        payload: &datagram[UDP..],
    })
}

/// The two stations of the link, as seen from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) own: MacAddress,
    pub(crate) guest: MacAddress,
}

fn write_ethernet(frame: &mut [u8], link: Link, protocol: EthernetProtocol) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    ethernet.set_dst_addr(EthernetAddress(link.guest.0));
    ethernet.set_src_addr(EthernetAddress(link.own.0));
    ethernet.set_ethertype(protocol);
}

/// Writes an ARP packet of ours. Returns the length of the frame.
pub(crate) fn write_arp(
    frame: &mut [u8],
    link: Link,
    operation: ArpOperation,
    own: Ipv4Addr,
    target: Ipv4Addr,
) -> usize {
    write_ethernet(frame, link, EthernetProtocol::Arp);
    let target_mac = if operation == ArpOperation::Request { [0; 6] } else { link.guest.0 };
    let arp = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(link.own.0),
        source_protocol_addr: own,
        target_hardware_addr: EthernetAddress(target_mac),
        target_protocol_addr: target,
    };
    let length = ETHERNET + arp.buffer_len();
    arp.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET..length]));
    length
}

/// Where a packet goes, and as which part of which datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv4Out {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    /// Identification, offset in bytes and whether more follow; None for a whole packet.
    pub(crate) fragment: Option<(u16, usize, bool)>,
}

/// Writes the headers before a payload of `length` bytes. Returns the length of the frame.
pub(crate) fn write_ipv4(frame: &mut [u8], link: Link, out: Ipv4Out, length: usize) -> usize {
    write_ethernet(frame, link, EthernetProtocol::Ipv4);
    let header = &mut frame[ETHERNET..ETHERNET + IPV4];
    let mut packet = Ipv4Packet::new_unchecked(&mut *header);
    packet.set_version(4);
    packet.set_header_len(IPV4 as u8);
    packet.set_dscp(0);
    packet.set_ecn(0);
    packet.set_total_len((IPV4 + length) as u16);
    packet.clear_flags();
    match out.fragment {
        None => {
            packet.set_ident(0);
            packet.set_dont_frag(true);
            packet.set_more_frags(false);
            packet.set_frag_offset(0);
        }
        Some((ident, offset, more)) => {
            packet.set_ident(ident);
            packet.set_dont_frag(false);
            packet.set_more_frags(more);
            packet.set_frag_offset(offset as u16);
        }
    }
    packet.set_hop_limit(TTL);
    packet.set_next_header(IpProtocol::from(out.protocol));
    packet.set_src_addr(out.source);
    packet.set_dst_addr(out.destination);
    packet.set_checksum(0);
    let sum = checksum::of(header);
    header[10..12].copy_from_slice(&sum);
    ETHERNET + IPV4 + length
}

/// Writes a UDP header into `datagram`, whose payload stands behind it.
pub(crate) fn write_udp(datagram: &mut [u8], source: SocketAddrV4, destination: SocketAddrV4) {
    let length = datagram.len();
    let mut packet = UdpPacket::new_unchecked(&mut *datagram);
    packet.set_src_port(source.port());
    packet.set_dst_port(destination.port());
    packet.set_len(length as u16);
    packet.set_checksum(0);
    let mut sum = Checksum::pseudo(*source.ip(), *destination.ip(), PROTOCOL_UDP, length);
    sum.add(datagram);
    let sum = match sum.finish() {
        // Zero would mean that there is no sum (RFC 768).
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum);
}

/// Returns where the payload of a segment begins in its frame.
pub(crate) fn tcp_payload_start(out: &Outgoing) -> usize {
    ETHERNET + IPV4 + TCP + if out.flags.syn { TCP_SYN_OPTIONS } else { 0 }
}

/// Writes all headers of a segment whose payload stands in its place already. Returns the length of the frame.
pub(crate) fn write_tcp(
    frame: &mut [u8],
    link: Link,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    out: &Outgoing,
) -> usize {
    let length = tcp_payload_start(out) + out.data.len();
    let segment = &mut frame[ETHERNET + IPV4..length];
    let mut packet = TcpPacket::new_unchecked(&mut *segment);
    packet.set_src_port(source.port());
    packet.set_dst_port(destination.port());
    packet.set_seq_number(smoltcp::wire::TcpSeqNumber(out.seq.0 as i32));
    packet.set_ack_number(smoltcp::wire::TcpSeqNumber(out.ack.map_or(0, |ack| ack.0 as i32)));
    packet.clear_flags();
    packet.set_ack(out.ack.is_some());
    packet.set_syn(out.flags.syn);
    packet.set_fin(out.flags.fin);
    packet.set_rst(out.flags.rst);
    packet.set_psh(out.flags.psh);
    packet.set_window_len(out.window);
    packet.set_urgent_at(0);
    packet.set_checksum(0);
    packet.set_header_len((TCP + if out.flags.syn { TCP_SYN_OPTIONS } else { 0 }) as u8);
    if out.flags.syn {
        let rest = TcpOption::MaxSegmentSize(out.mss.unwrap_or(536)).emit(packet.options_mut());
        let rest = TcpOption::NoOperation.emit(rest);
        match out.window_shift {
            Some(shift) => {
                TcpOption::WindowScale(shift).emit(rest);
            }
            None => rest.fill(0),
        }
    }
    let mut sum = Checksum::pseudo(*source.ip(), *destination.ip(), PROTOCOL_TCP, segment.len());
    sum.add(segment);
    let sum = sum.finish();
    segment[16..18].copy_from_slice(&sum);
    let ip = Ipv4Out {
        source: *source.ip(),
        destination: *destination.ip(),
        protocol: PROTOCOL_TCP,
        fragment: None,
    };
    write_ipv4(frame, link, ip, length - ETHERNET - IPV4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([0xa6, 0x47, 10, 0, 2, 2]);
    const GUEST: MacAddress = MacAddress([0xa6, 0x41, 0x72, 1, 2, 3]);
    /// From the guest to us: the writers below write in the other direction.
    const LINK: Link = Link { own: GUEST, guest: OWN };

    fn address(last: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, last), port)
    }

    fn udp_frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + IPV4 + UDP + payload.len()];
        frame[ETHERNET + IPV4 + UDP..].copy_from_slice(payload);
        write_udp(&mut frame[ETHERNET + IPV4..], address(15, 1000), address(2, 53));
        let out = Ipv4Out {
            source: *address(15, 0).ip(),
            destination: *address(2, 0).ip(),
            protocol: PROTOCOL_UDP,
            fragment: None,
        };
        write_ipv4(&mut frame, LINK, out, UDP + payload.len());
        frame
    }

    fn ipv4(frame: &[u8]) -> Ipv4<'_> {
        match parse(frame, OWN) {
            Ok(Packet::Ipv4(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn udp_there_and_back() {
        for length in [0, 1, 2, 3, 100, 1471, 1472] {
            let payload = vec![0xa5; length];
            let mut frame = udp_frame(&payload);
            frame.extend([0xee; 7]); // Ethernet's padding.
            let ip = ipv4(&frame);
            assert!(!ip.is_fragment());
            let udp = parse_udp(ip.source, ip.destination, ip.payload).unwrap();
            assert_eq!((udp.source, udp.destination), (address(15, 1000), address(2, 53)));
            assert_eq!(udp.payload, payload);
        }
    }

    #[test]
    fn every_flipped_bit_after_the_addresses_is_noticed() {
        let frame = udp_frame(b"some payload");
        for bit in 12 * 8..frame.len() * 8 {
            let mut broken = frame.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let taken = match parse(&broken, OWN) {
                Ok(Packet::Ipv4(ip)) => parse_udp(ip.source, ip.destination, ip.payload).is_ok(),
                Ok(Packet::Arp(_)) => true,
                Err(_) => false,
            };
            assert!(!taken, "bit {bit}");
        }
    }

    #[test]
    fn tcp_there_and_back() {
        let mut frame = vec![0; 1514];
        let out = Outgoing {
            seq: Seq(0xffff_fff0),
            ack: Some(Seq(7)),
            flags: Flags { psh: true, fin: true, ..Flags::default() },
            window: 999,
            mss: None,
            window_shift: None,
            data: 0..5,
        };
        let start = tcp_payload_start(&out);
        frame[start..start + 5].copy_from_slice(b"hello");
        let length = write_tcp(&mut frame, LINK, address(15, 1000), address(2, 80), &out);
        let ip = ipv4(&frame[..length]);
        let tcp = parse_tcp(ip.source, ip.destination, ip.payload).unwrap();
        assert_eq!((tcp.source_port, tcp.destination_port), (1000, 80));
        assert_eq!((tcp.segment.seq, tcp.segment.ack, tcp.segment.window), (out.seq, out.ack, 999));
        assert_eq!((tcp.segment.flags, tcp.segment.payload), (out.flags, &b"hello"[..]));

        let syn = Outgoing {
            ack: None,
            flags: Flags { syn: true, ..Flags::default() },
            mss: Some(1460),
            window_shift: Some(7),
            data: 0..0,
            ..out
        };
        let length = write_tcp(&mut frame, LINK, address(15, 1000), address(2, 80), &syn);
        let ip = ipv4(&frame[..length]);
        let tcp = parse_tcp(ip.source, ip.destination, ip.payload).unwrap();
        assert_eq!((tcp.segment.mss, tcp.segment.window_shift, tcp.segment.ack), (Some(1460), Some(7), None));
        assert!(tcp.segment.payload.is_empty());
    }

    #[test]
    fn arp_there_and_back() {
        let mut frame = vec![0; 64];
        let link = Link { own: GUEST, guest: MacAddress::BROADCAST };
        let length =
            write_arp(&mut frame, link, ArpOperation::Request, *address(15, 0).ip(), *address(2, 0).ip());
        let Ok(Packet::Arp(arp)) = parse(&frame[..length], OWN) else { panic!() };
        assert_eq!(
            arp,
            Arp {
                request: true,
                source_mac: GUEST,
                source: *address(15, 0).ip(),
                target: *address(2, 0).ip()
            }
        );
        // A sender that claims another's hardware address is not believed.
        frame[6] ^= 4;
        assert!(matches!(parse(&frame[..length], OWN), Err(Reject::NotForUs)));
    }

    #[test]
    fn what_is_not_for_us_or_not_known_is_told_apart() {
        let frame = udp_frame(b"x");
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let cases: [(Change<'_>, Reject); 6] = [
            (&|frame| frame[0] = 0x02, Reject::NotForUs),
            (&|frame| frame[6] |= 1, Reject::Malformed),
            (&|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd]), Reject::Unsupported),
            (&|frame| frame[12..14].copy_from_slice(&[0x81, 0x00]), Reject::Unsupported),
            (&|frame| frame.truncate(13), Reject::Malformed),
            (&|frame| frame.truncate(30), Reject::Malformed),
        ];
        for (change, expected) in cases {
            let mut changed = frame.clone();
            change(&mut changed);
            assert_eq!(parse(&changed, OWN).err(), Some(expected));
        }
    }

    #[test]
    fn options_are_skipped_and_prescribed_routes_refused() {
        for (options, routed) in [
            (&[1, 1, 1, 0][..], false),
            (&[7, 3, 4, 0], false),
            (&[148, 4, 0, 0], false),
            (&[131, 3, 4, 0], true),
            (&[1, 137, 3, 4], true),
            (&[7, 0, 131, 3], false),
            (&[7, 200, 131, 3], false),
            (&[7], false),
        ] {
            assert_eq!(has_source_route(options), routed, "{options:?}");
        }
    }
}
