//! What a card does to frames on the guest's behalf (virtio 1.2, §5.1.6.2 and §5.1.6.4): completes
//! checksums, cuts long TCP segments into frames, and vouches for checksums of what arrives. Pure
//! functions over bytes; the bytes are the guest's or the network's and may be anything.

use super::spec::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HDR_DATA_VALID, HDR_NEEDS_CSUM, HEADER_LEN};

/// The longest frame that a guest may hand over for cutting: an IP packet of 64 KiB with an Ethernet
/// header and a VLAN tag.
pub(super) const LONG_FRAME_MAX: usize = 65536 + 18;
/// More frames than this are not made of one: Linux makes at most 1365, at the smallest segment size
/// that it uses.
const SEGMENTS_MAX: usize = 2048;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

const TCP_FIN: u8 = 1 << 0;
const TCP_PSH: u8 = 1 << 3;
const TCP_CWR: u8 = 1 << 7;

/// `struct virtio_net_hdr` as a driver fills it in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Wishes {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Wishes {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Wishes {
            flags: bytes[0],
            gso_type: bytes[1],
            // `hdr_len` at 2 is a hint only.
            gso_size: u16_at(4),
            csum_start: u16_at(6),
            csum_offset: u16_at(8),
        }
    }
}

/// Carries out what the driver wishes for `frame` and hands the resulting frames, none longer than
/// `frame_size_max`, to `send`. A frame with which it cannot be done is lost. `scratch` is for the
/// frames made of a long one.
pub(super) fn send_as_wished(
    frame: &mut [u8],
    wishes: Wishes,
    frame_size_max: usize,
    scratch: &mut Vec<u8>,
    mut send: impl FnMut(&[u8]),
) {
    match wishes.gso_type & !GSO_ECN {
        GSO_NONE => {
            let needs_checksum = wishes.flags & HDR_NEEDS_CSUM != 0;
            if frame.len() <= frame_size_max && (!needs_checksum || complete_checksum(frame, wishes)) {
                send(frame);
            }
        }
        GSO_TCPV4 | GSO_TCPV6 => {
            let _ = cut(frame, wishes, frame_size_max, scratch, &mut send);
        }
        _ => {}
    }
}

/// Sums what `csum_start` and on has, pseudo header included by the driver, and puts the complement
/// where `csum_offset` says; false when those are not in the frame.
fn complete_checksum(frame: &mut [u8], wishes: Wishes) -> bool {
    let start = wishes.csum_start as usize;
    let at = start + wishes.csum_offset as usize;
    if at + 2 > frame.len() {
        return false;
    }
    let sum = fold(sum(&frame[start..]));
    // In both UDP and TCP all ones stands for a sum of zero as well; in UDP zero means "none".
    let checksum = if sum == 0xffff { 0xffff } else { !sum };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Cuts a long TCP segment into frames with `gso_size` bytes of data each.
fn cut(
    frame: &[u8],
    wishes: Wishes,
    frame_size_max: usize,
    scratch: &mut Vec<u8>,
    send: &mut impl FnMut(&[u8]),
) -> Option<()> {
    let packet = Packet::parse(frame)?;
    let expected = if wishes.gso_type & !GSO_ECN == GSO_TCPV4 { Version::V4 } else { Version::V6 };
    if packet.version != expected || packet.protocol != PROTOCOL_TCP {
        return None;
    }
    let (ip, tcp) = (packet.ip, packet.transport);
    let tcp_header_len = (frame.get(tcp + 12)? >> 4) as usize * 4;
    let data_at = tcp + tcp_header_len;
    let size = wishes.gso_size as usize;
    if tcp_header_len < 20 || size == 0 || data_at + size > frame_size_max {
        return None;
    }
    let (headers, data) = (frame.get(..data_at)?, frame.get(data_at..packet.end)?);
    let count = data.len().div_ceil(size).max(1);
    if count > SEGMENTS_MAX {
        return None;
    }
    let flags = headers[tcp + 13];
    let sequence = u32::from_be_bytes(headers[tcp + 4..tcp + 8].try_into().ok()?);
    for index in 0..count {
        let from = index * size;
        let data = &data[from..data.len().min(from + size)];
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(data);
        let bytes = &mut scratch[..];
        match packet.version {
            Version::V4 => {
                let total = (bytes.len() - ip) as u16;
                bytes[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
                let id = u16::from_be_bytes([headers[ip + 4], headers[ip + 5]]).wrapping_add(index as u16);
                bytes[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
                bytes[ip + 10..ip + 12].fill(0);
                let checksum = !fold(sum(&bytes[ip..tcp]));
                bytes[ip + 10..ip + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            Version::V6 => {
                let payload = (bytes.len() - ip - 40) as u16;
                bytes[ip + 4..ip + 6].copy_from_slice(&payload.to_be_bytes());
            }
        }
        bytes[tcp + 4..tcp + 8].copy_from_slice(&sequence.wrapping_add(from as u32).to_be_bytes());
        // The first says that the window was reduced (RFC 3168, §6.1.2), the last that this is all.
        let mut flags = flags;
        if index > 0 {
            flags &= !TCP_CWR;
        }
        if index + 1 < count {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        bytes[tcp + 13] = flags;
        bytes[tcp + 16..tcp + 18].fill(0);
        let checksum = !fold(packet.pseudo_header_sum(bytes) + sum(&bytes[tcp..]));
        bytes[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_be_bytes());
        send(bytes);
    }
    Some(())
}

/// The flags of the header for a frame that goes to the guest: `VIRTIO_NET_HDR_F_DATA_VALID` when it
/// carries a whole TCP or UDP packet whose checksums are right, so that the guest need not look.
pub(super) fn vouch(frame: &[u8]) -> u8 {
    match is_intact(frame) {
        Some(true) => HDR_DATA_VALID,
        _ => 0,
    }
}

fn is_intact(frame: &[u8]) -> Option<bool> {
    let packet = Packet::parse(frame)?;
    let transport = frame.get(packet.transport..packet.end)?;
    let has_checksum = match packet.protocol {
        PROTOCOL_TCP => transport.len() >= 20,
        PROTOCOL_UDP => transport.len() >= 8 && transport[6..8] != [0, 0],
        _ => false,
    };
    if !has_checksum || !packet.whole {
        return None;
    }
    let header_right =
        packet.version == Version::V6 || fold(sum(&frame[packet.ip..packet.transport])) == 0xffff;
    Some(header_right && fold(packet.pseudo_header_sum(&frame[..packet.end]) + sum(transport)) == 0xffff)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

/// Where things are in a frame with an unfragmented IP packet.
#[derive(Clone, Copy, Debug)]
struct Packet {
    version: Version,
    protocol: u8,
    /// Offset of the IP header.
    ip: usize,
    /// Offset of what follows it.
    transport: usize,
    /// Offset of the end of the packet; short frames are padded after it.
    end: usize,
    /// The packet's length is what its header says.
    whole: bool,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Packet> {
        let u16_at = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
        let (mut ethertype, mut ip) = (u16_at(12)?, 14);
        if ethertype == ETHERTYPE_VLAN {
            (ethertype, ip) = (u16_at(16)?, 18);
        }
        match (ethertype, *frame.get(ip)? >> 4) {
            (ETHERTYPE_IPV4, 4) => {
                let header_len = (frame[ip] & 0xf) as usize * 4;
                let (total, fragment) = (u16_at(ip + 2)? as usize, u16_at(ip + 6)?);
                let protocol = *frame.get(ip + 9)?;
                let transport = ip + header_len;
                // "More fragments", or an offset (RFC 791, §3.1).
                if header_len < 20 || fragment & 0x3fff != 0 || frame.len() < transport {
                    return None;
                }
                // A packet to be cut may be longer than its length field can say.
                let whole = total >= header_len && ip + total <= frame.len();
                let end = if whole { ip + total } else { frame.len() };
                Some(Packet { version: Version::V4, protocol, ip, transport, end, whole })
            }
            (ETHERTYPE_IPV6, 6) => {
                let payload = u16_at(ip + 4)? as usize;
                let protocol = *frame.get(ip + 6)?;
                // Extension headers are left to those who understand them.
                let transport = ip + 40;
                if frame.len() < transport {
                    return None;
                }
                let whole = payload > 0 && transport + payload <= frame.len();
                let end = if whole { transport + payload } else { frame.len() };
                Some(Packet { version: Version::V6, protocol, ip, transport, end, whole })
            }
            _ => None,
        }
    }

    /// The sum of the pseudo header (RFC 9293, §3.1; RFC 8200, §8.1) for a packet that ends with `frame`.
    fn pseudo_header_sum(&self, frame: &[u8]) -> u64 {
        let addresses = match self.version {
            Version::V4 => &frame[self.ip + 12..self.ip + 20],
            Version::V6 => &frame[self.ip + 8..self.ip + 40],
        };
        sum(addresses) + self.protocol as u64 + (frame.len() - self.transport) as u64
    }
}

/// The sum of all 16-bit words, big-endian, an odd byte counting as the upper half of one (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    // Words of 32 bits hold two of 16; the halves are added together when folded.
    let mut sum: u64 =
        words.map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as u64).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u32::from_be_bytes(last) as u64;
    sum
}

/// Adds the carries back in until 16 bits are left.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum in the plainest way, as the oracle.
    fn plain(words: &[&[u8]]) -> u16 {
        let bytes = words.concat();
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += (pair[0] as u32) << 8 | *pair.get(1).unwrap_or(&0) as u32;
            if total > 0xffff {
                total -= 0xffff;
            }
        }
        total as u16
    }

    /// A TCP frame with these data; checksums right.
    fn tcp(version: Version, vlan: bool, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if vlan {
            frame.extend([0x81, 0, 0, 5]);
        }
        let mut tcp =
            vec![0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9, 0x60, flags, 1, 0, 0, 0, 0, 0];
        tcp.extend([1, 1, 1, 0]);
        tcp.extend(data);
        let len = tcp.len() as u16;
        let addresses: Vec<u8>;
        match version {
            Version::V4 => {
                frame.extend([8, 0]);
                let mut ip = vec![0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
                ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
                let checksum = !plain(&[&ip]);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                addresses = ip[12..20].to_vec();
                frame.extend(ip);
            }
            Version::V6 => {
                frame.extend([0x86, 0xdd]);
                let mut ip = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
                ip[4..6].copy_from_slice(&len.to_be_bytes());
                ip.extend((0..32).map(|i| i * 7));
                addresses = ip[8..40].to_vec();
                frame.extend(ip);
            }
        }
        let checksum = !plain(&[&addresses, &[0, 6], &len.to_be_bytes(), &tcp]);
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(tcp);
        frame
    }

    fn wishes(flags: u8, gso_type: u8, gso_size: u16, csum_start: usize, csum_offset: u16) -> Wishes {
        Wishes { flags, gso_type, gso_size, csum_start: csum_start as u16, csum_offset }
    }

    fn sent(frame: &[u8], wishes: Wishes, frame_size_max: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut scratch = Vec::new();
        send_as_wished(&mut frame.to_vec(), wishes, frame_size_max, &mut scratch, |frame| {
            assert!(frame.len() <= frame_size_max);
            frames.push(frame.to_vec());
        });
        frames
    }

    const ALL: [(Version, bool); 4] =
        [(Version::V4, false), (Version::V4, true), (Version::V6, false), (Version::V6, true)];

    #[test]
    fn sums_agree_with_the_plain_way_at_every_length() {
        let bytes: Vec<u8> = (0..2000u32).map(|i| ((i * i) >> 3) as u8 | 0x80).collect();
        for len in (0..64).chain([1459, 1460, 2000]) {
            assert_eq!(fold(sum(&bytes[..len])), plain(&[&bytes[..len]]), "{len}");
        }
        assert_eq!(fold(sum(&[0xff; 1 << 16])), 0xffff);
    }

    #[test]
    fn a_checksum_left_to_us_is_completed() {
        for (version, vlan) in ALL {
            for data in [&b""[..], b"x", b"some more data here"] {
                let right = tcp(version, vlan, 0x18, data);
                let packet = Packet::parse(&right).unwrap();
                let mut left = right.clone();
                // The driver leaves the pseudo header's sum in the field.
                let pseudo = fold(packet.pseudo_header_sum(&right));
                left[packet.transport + 16..][..2].copy_from_slice(&pseudo.to_be_bytes());
                let wishes = wishes(HDR_NEEDS_CSUM, GSO_NONE, 0, packet.transport, 16);
                assert_eq!(sent(&left, wishes, 1514), [right]);
            }
        }
    }

    #[test]
    fn a_long_segment_becomes_frames_that_make_up_the_same() {
        let data: Vec<u8> = (0..10_000u32).map(|i| ((i * 31) >> 4) as u8).collect();
        for (version, vlan) in ALL {
            let long = tcp(version, vlan, TCP_FIN | TCP_PSH | TCP_CWR | 0x10, &data);
            let packet = Packet::parse(&long).unwrap();
            let kind = if version == Version::V4 { GSO_TCPV4 } else { GSO_TCPV6 };
            let wishes = wishes(HDR_NEEDS_CSUM, kind | GSO_ECN, 1400, packet.transport, 16);
            let frames = sent(&long, wishes, 1514);
            assert_eq!(frames.len(), 8);
            let mut joined: Vec<u8> = Vec::new();
            for (index, frame) in frames.iter().enumerate() {
                assert_eq!(vouch(frame), HDR_DATA_VALID, "{version:?} {index}: checksums are right");
                let here = Packet::parse(frame).unwrap();
                assert_eq!((here.ip, here.transport, here.end), (packet.ip, packet.transport, frame.len()));
                let tcp = &frame[here.transport..];
                let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
                assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(joined.len() as u32));
                let mut flags = 0x10;
                flags |= if index == 0 { TCP_CWR } else { 0 };
                flags |= if index == 7 { TCP_FIN | TCP_PSH } else { 0 };
                assert_eq!(tcp[13], flags);
                if version == Version::V4 {
                    let id = u16::from_be_bytes([frame[here.ip + 4], frame[here.ip + 5]]);
                    assert_eq!(id, 0xffffu16.wrapping_add(index as u16));
                }
                joined.extend(&tcp[24..]);
            }
            assert_eq!(joined, data);
        }
    }

    #[test]
    fn what_cannot_be_done_is_lost() {
        let frame = tcp(Version::V4, false, 0x10, &[0; 3000]);
        let fits = tcp(Version::V4, false, 0x10, &[0; 100]);
        for (frame, wishes) in [
            (&frame, wishes(0, GSO_NONE, 0, 0, 0)),
            (&fits, wishes(HDR_NEEDS_CSUM, GSO_NONE, 0, 65535, 0)),
            (&fits, wishes(HDR_NEEDS_CSUM, GSO_NONE, 0, 34, 65535)),
            (&fits, wishes(HDR_NEEDS_CSUM, GSO_NONE, 0, fits.len() - 1, 0)),
            (&frame, wishes(HDR_NEEDS_CSUM, GSO_TCPV4, 0, 34, 16)),
            (&frame, wishes(HDR_NEEDS_CSUM, GSO_TCPV4, 1, 34, 16)),
            (&frame, wishes(HDR_NEEDS_CSUM, GSO_TCPV4, 1480, 34, 16)),
            (&frame, wishes(HDR_NEEDS_CSUM, GSO_TCPV6, 1400, 34, 16)),
            (&frame, wishes(HDR_NEEDS_CSUM, 3, 1400, 34, 16)),
        ] {
            assert_eq!(sent(frame, wishes, 1514), [[0; 0]; 0], "{wishes:?}");
        }
        // And whatever a frame is cut down to.
        for len in 0..fits.len() {
            for kind in [GSO_TCPV4, GSO_TCPV6] {
                sent(&fits[..len], wishes(HDR_NEEDS_CSUM, kind, 10, 34, 16), 1514);
            }
            vouch(&fits[..len]);
        }
    }

    #[test]
    fn only_whole_and_right_packets_are_vouched_for() {
        for (version, vlan) in ALL {
            let frame = tcp(version, vlan, 0x10, b"data!");
            assert_eq!(vouch(&frame), HDR_DATA_VALID);
            let padded = [&frame[..], &[0; 20]].concat();
            assert_eq!(vouch(&padded), HDR_DATA_VALID);
            let ip = Packet::parse(&frame).unwrap().ip;
            // The header of IPv6 has no checksum of its own; its addresses are in TCP's.
            let covered = if version == Version::V4 { ip } else { ip + 8 };
            for at in covered..frame.len() {
                let mut wrong = frame.clone();
                wrong[at] ^= 0x10;
                assert_eq!(vouch(&wrong), 0, "{version:?} {at}");
            }
            assert_eq!(vouch(&frame[..frame.len() - 1]), 0);
        }
        assert_eq!(vouch(&[0; 60]), 0);
    }
}
