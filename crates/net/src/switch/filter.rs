//! What a port may send: only as itself.

use std::net::Ipv4Addr;

use super::ports::SwitchPort;
use crate::MacAddress;

/// Length of an Ethernet header.
const HEADER: usize = 14;
/// EtherTypes (IEEE 802 numbers).
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const VLAN_SERVICE: u16 = 0x88a8;
/// The groups that no bridge passes on (IEEE 802.1Q table 8-1): 01:80:c2:00:00:00 to 0f.
const BRIDGES: [u8; 5] = [0x01, 0x80, 0xc2, 0x00, 0x00];
/// ARP over Ethernet and IPv4 (RFC 826): where the sender's addresses stand, and the length.
const ARP_SENDER_MAC: usize = 8;
const ARP_SENDER_IP: usize = 14;
const ARP_LEN: usize = 28;
/// An IPv4 header (RFC 791 §3.1): where protocol and source stand, and the least length.
const IPV4_PROTOCOL: usize = 9;
const IPV4_SOURCE: usize = 12;
const IPV4_LEN: usize = 20;
const IPV6: u16 = 0x86dd;
/// An IPv6 header (RFC 8200 §3): where the next header's kind stands, and the length.
const IPV6_NEXT: usize = 6;
const IPV6_LEN: usize = 40;
/// Extension headers (RFC 8200 §4) of one form: the next one's kind, and the length in units of eight bytes.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;
/// So many are followed; no real packet has more.
const EXTENSIONS_MAX: usize = 8;
const ICMPV6: u8 = 58;
/// Messages that only a router sends (RFC 4861 §4.2, §4.5): advertisement and redirect.
const OF_ROUTERS: [u8; 2] = [134, 137];
const UDP: u8 = 17;
/// RFC 8415 §7.2.
const DHCPV6_SERVER: [u8; 2] = 547u16.to_be_bytes();
const DHCP_SERVER: [u8; 2] = 67u16.to_be_bytes();

/// Where a frame goes, if its sender is what it says.
///
/// `is_others` tells whether an address is kept for something else than this port; `dhcp` whether the network itself
/// gives addresses, so that no guest may.
pub(super) fn destination(
    frame: &[u8],
    port: &SwitchPort,
    is_others: impl Fn(Ipv4Addr) -> bool,
    dhcp: bool,
) -> Option<MacAddress> {
    let (header, payload) = frame.split_at_checked(HEADER)?;
    let destination = MacAddress(*header.first_chunk()?);
    if header[6..12] != port.mac.0 || destination.0[..5] == BRIDGES && destination.0[5] < 16 {
        return None;
    }
    let is_own = |at: usize| {
        let address = payload.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        address.map(Ipv4Addr::from).is_some_and(|ip| Some(ip) == port.address || !is_others(ip))
    };
    let passes = match u16::from_be_bytes([header[12], header[13]]) {
        ARP => {
            payload.len() >= ARP_LEN
                && payload[ARP_SENDER_MAC..ARP_SENDER_MAC + 6] == port.mac.0
                && is_own(ARP_SENDER_IP)
        }
        IPV4 => payload.len() >= IPV4_LEN && is_own(IPV4_SOURCE) && !(dhcp && is_dhcp_server(payload)),
        IPV6 => !dhcp || !is_ipv6_router(payload),
        // Without VLANs there is nobody that a tag is for but those who would not look behind it.
        VLAN | VLAN_SERVICE => false,
        _ => true,
    };
    passes.then_some(destination)
}

/// Whether an IPv4 packet comes from a DHCP server's port.
fn is_dhcp_server(packet: &[u8]) -> bool {
    let header = usize::from(packet[0] & 0xf) * 4;
    packet[IPV4_PROTOCOL] == UDP && packet.get(header..header + 2) == Some(&DHCP_SERVER)
}

/// Whether an IPv6 packet is one that a router or a DHCP server sends, or one that hides what it is: a guest that plays
/// the router gets all that others send to the outside (RFC 6105, and RFC 7113 for how such checks are evaded).
fn is_ipv6_router(packet: &[u8]) -> bool {
    let Some((header, mut rest)) = packet.split_at_checked(IPV6_LEN) else { return true };
    let mut kind = header[IPV6_NEXT];
    for _ in 0..EXTENSIONS_MAX {
        let length = match kind {
            ICMPV6 => return rest.first().is_none_or(|message| OF_ROUTERS.contains(message)),
            UDP => return rest.get(..2).is_none_or(|source| source == DHCPV6_SERVER),
            // What follows another fragment is not whole without the first.
            FRAGMENT if rest.len() >= 8 && u16::from_be_bytes([rest[2], rest[3]]) >> 3 != 0 => return false,
            FRAGMENT => 8,
            _ if EXTENSIONS.contains(&kind) => match rest.get(1) {
                Some(units) => (usize::from(*units) + 1) * 8,
                None => return true,
            },
            _ => return false,
        };
        let Some((extension, after)) = rest.split_at_checked(length) else { return true };
        (kind, rest) = (extension[0], after);
    }
    true
}

/// What a fuzz target calls: any frame, from a port of a network that gives addresses or of one that does not.
pub(crate) fn fuzz(frame: &[u8], port: &SwitchPort) {
    for dhcp in [false, true] {
        let passed = destination(frame, port, |ip| ip.octets()[3] % 2 == 0, dhcp);
        assert!(passed.is_none() || frame[6..12] == port.mac.0, "a frame of another's passes");
    }
}

#[cfg(test)]
mod tests {
    use super::super::PortKey;
    use super::*;

    const OWN: MacAddress = MacAddress([0xa6, 0x41, 0x72, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([0xa6, 0x41, 0x72, 0, 0, 2]);
    const OWN_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
    const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    const FREE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

    fn sent(frame: &[u8]) -> Option<MacAddress> {
        let port = SwitchPort { key: PortKey([0; 32]), mac: OWN, address: Some(OWN_IP), name: "own".into() };
        destination(frame, &port, |ip| ip == OTHER_IP || ip == OWN_IP, true)
    }

    fn frame(source: MacAddress, kind: u16, payload: &[u8]) -> Vec<u8> {
        [&OTHER.0[..], &source.0, &kind.to_be_bytes(), payload].concat()
    }

    fn arp(mac: MacAddress, ip: Ipv4Addr) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac.0, &ip.octets(), &[0; 10]].concat()
    }

    fn ipv4(source: Ipv4Addr, protocol: u8, source_port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source.octets());
        packet.extend(OTHER_IP.octets());
        packet.extend(source_port.to_be_bytes());
        packet.extend([0; 6]);
        packet
    }

    /// An IPv6 packet: the chain of headers before `last`, each of eight bytes, and what comes then.
    fn ipv6(chain: &[u8], last: u8, payload: &[u8]) -> Vec<u8> {
        let mut kinds: Vec<u8> = chain.to_vec();
        kinds.push(last);
        let mut packet = vec![0x60; IPV6_LEN];
        packet[IPV6_NEXT] = kinds[0];
        for next in &kinds[1..] {
            packet.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        packet.extend(payload);
        packet
    }

    #[test]
    fn no_guest_is_the_router_of_a_network_that_has_one() {
        let later_fragment = [&ipv6(&[], FRAGMENT, &[ICMPV6, 0, 0, 8, 0, 0, 0, 1])[..], &[134; 8]].concat();
        for (passes, packet) in [
            (true, ipv6(&[], ICMPV6, &[135, 0, 0, 0])),
            (true, ipv6(&[], ICMPV6, &[133, 0, 0, 0])),
            (true, ipv6(&[0, 60], ICMPV6, &[128, 0, 0, 0])),
            (true, ipv6(&[], UDP, &[2, 34, 2, 35])),
            (true, ipv6(&[], 6, &[0; 20])),
            (true, later_fragment),
            (false, ipv6(&[], ICMPV6, &[134, 0, 0, 0])),
            (false, ipv6(&[], ICMPV6, &[137, 0, 0, 0])),
            (false, ipv6(&[0], ICMPV6, &[134, 0, 0, 0])),
            (false, ipv6(&[60, 60, 43], ICMPV6, &[134, 0, 0, 0])),
            (false, ipv6(&[FRAGMENT], ICMPV6, &[134, 0, 0, 0])),
            (false, ipv6(&[], UDP, &[2, 35, 2, 34])),
            // What it is lies in a later fragment, behind the end, or behind more headers than anybody needs.
            (false, ipv6(&[FRAGMENT], 60, &[])),
            (false, ipv6(&[], ICMPV6, &[])),
            (false, ipv6(&[0; 9], 6, &[0; 20])),
            (false, vec![0x60; 39]),
        ] {
            let packet = frame(OWN, 0x86dd, &packet);
            assert_eq!(sent(&packet).is_some(), passes, "{packet:02x?}");
            let port = SwitchPort { key: PortKey([0; 32]), mac: OWN, address: None, name: "own".into() };
            assert!(destination(&packet, &port, |_| false, false).is_some(), "a network without a router");
        }
    }

    #[test]
    fn a_port_sends_as_itself_and_as_nobody_else() {
        for (passes, frame) in [
            (true, frame(OWN, 0x0800, &ipv4(OWN_IP, 6, 1))),
            (true, frame(OWN, 0x0800, &ipv4(Ipv4Addr::UNSPECIFIED, 17, 68))),
            // An address that is nobody's may be used: not every guest is configured by DHCP.
            (true, frame(OWN, 0x0800, &ipv4(FREE_IP, 6, 1))),
            (true, frame(OWN, 0x0806, &arp(OWN, OWN_IP))),
            (true, frame(OWN, 0x86dd, &[0x60; 40])),
            (true, frame(OWN, 0x0800, &ipv4(OWN_IP, 6, 67))),
            (false, frame(OTHER, 0x0800, &ipv4(OWN_IP, 6, 1))),
            (false, frame(OWN, 0x0800, &ipv4(OTHER_IP, 6, 1))),
            (false, frame(OWN, 0x0806, &arp(OTHER, OWN_IP))),
            (false, frame(OWN, 0x0806, &arp(OWN, OTHER_IP))),
            (false, frame(OWN, 0x0800, &ipv4(OWN_IP, 17, 67))),
            (false, frame(OWN, 0x8100, &ipv4(OWN_IP, 6, 1))),
            (false, frame(OWN, 0x0800, &[0x45; 19])),
            (false, frame(OWN, 0x0806, &[0; 27])),
            (false, vec![0; 13]),
            (false, Vec::new()),
            (false, [&[0x01, 0x80, 0xc2, 0, 0, 3][..], &OWN.0, &[0x88, 0xcc]].concat()),
        ] {
            assert_eq!(sent(&frame).is_some(), passes, "{frame:02x?}");
        }
    }
}
