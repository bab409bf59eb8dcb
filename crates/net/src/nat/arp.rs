//! ARP (RFC 826): who has the gateway's and the name server's address, and where guests are.

use std::net::Ipv4Addr;

use smoltcp::wire::ArpOperation;

use super::core::Core;
use super::wire::{self, Arp};
use crate::MacAddress;

/// Room for an ARP packet in its frame.
const FRAME: usize = 64;

/// Takes an ARP packet of a guest. Returns the guest's address if where it is was not known.
pub(super) fn on_packet(core: &mut Core, arp: &Arp) -> Option<Ipv4Addr> {
    // A probe for an address in use names no source (RFC 5227 §2.1.1) and teaches nothing.
    let learned = core.learn(arp.source, arp.source_mac);
    if arp.request && core.spec.is_own(arp.target) {
        let link = core.link(arp.source_mac);
        core.queue(FRAME, |frame| wire::write_arp(frame, link, ArpOperation::Reply, arp.target, arp.source));
    }
    learned.then_some(arp.source)
}

/// Asks where a guest is.
pub(super) fn ask(core: &mut Core, guest: Ipv4Addr) {
    let link = core.link(MacAddress::BROADCAST);
    let own = core.spec.gateway;
    core.queue(FRAME, |frame| wire::write_arp(frame, link, ArpOperation::Request, own, guest));
}

#[cfg(test)]
mod tests {
    use super::super::config::NatConfig;
    use super::*;

    const GUEST: MacAddress = MacAddress([0xa6, 0x41, 0x72, 0, 0, 1]);

    fn answer(arp: Arp) -> (Option<Arp>, Option<Ipv4Addr>) {
        let mut core = Core::new(NatConfig::default().try_into().unwrap()).unwrap();
        let learned = on_packet(&mut core, &arp);
        let mut frame = [0; 64];
        let reply =
            core.outbox.pop_into(&mut frame).map(|length| match wire::parse(&frame[..length], GUEST) {
                Ok(wire::Packet::Arp(arp)) => arp,
                other => panic!("{other:?}"),
            });
        (reply, learned)
    }

    #[test]
    fn own_addresses_are_answered_for_and_others_are_not() {
        let guest = Ipv4Addr::new(10, 0, 2, 15);
        for (source, target, answered, learned) in [
            (guest, Ipv4Addr::new(10, 0, 2, 2), true, true),
            (guest, Ipv4Addr::new(10, 0, 2, 3), true, true),
            (guest, Ipv4Addr::new(10, 0, 2, 4), false, true),
            (guest, guest, false, true),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 2, 15), false, false),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 2, 2), true, false),
            (Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(10, 0, 2, 2), true, false),
        ] {
            let (reply, known) = answer(Arp { request: true, source_mac: GUEST, source, target });
            assert_eq!(known.is_some(), learned, "{source} {target}");
            assert_eq!(reply.is_some(), answered, "{source} {target}");
            if let Some(reply) = reply {
                assert!(!reply.request);
                assert_eq!((reply.source, reply.target), (target, source));
                assert_eq!(reply.source_mac, MacAddress::of_router(Ipv4Addr::new(10, 0, 2, 2)));
            }
        }
        // A reply is learned from and not answered.
        let reply =
            Arp { request: false, source_mac: GUEST, source: guest, target: Ipv4Addr::new(10, 0, 2, 2) };
        assert_eq!(answer(reply), (None, Some(guest)));
    }
}
