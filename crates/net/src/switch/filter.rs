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
const UDP: u8 = 17;
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
