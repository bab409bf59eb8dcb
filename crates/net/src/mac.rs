//! MAC addresses: parsing, printing, and fresh ones for virtual machines.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::{NetError, NetErrorKind};

/// A 48-bit IEEE 802 MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address that every station takes frames for.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// First three bytes of the addresses given to virtual network cards. The second-lowest bit of the first
    /// byte is set (locally administered, IEEE 802-2014 §8.4) and the lowest is clear (one station, not a
    /// group), so such an address never meets that of real hardware.
    pub const VM_PREFIX: [u8; 3] = [0xa6, 0x41, 0x72];

    /// First two bytes of the addresses of our own routers; the router's IPv4 address follows.
    const ROUTER_PREFIX: [u8; 2] = [0xa6, 0x47];

    /// Makes a random address with [`MacAddress::VM_PREFIX`].
    ///
    /// # Errors
    /// Fails when the host's random number source does.
    pub fn random() -> Result<Self, NetError> {
        let [a, b, c] = Self::VM_PREFIX;
        let [d, e, f] = crate::random::bytes::<3>()?;
        Ok(Self([a, b, c, d, e, f]))
    }

    /// Returns the address of a router of ours: the same for the same IPv4 address, so that a guest restored
    /// or moved finds its neighbour table still right.
    pub fn of_router(address: Ipv4Addr) -> Self {
        let [a, b] = Self::ROUTER_PREFIX;
        let [c, d, e, f] = address.octets();
        Self([a, b, c, d, e, f])
    }

    /// Tells whether this names a group of stations (broadcast included), not one.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Tells whether this is locally administered, not bought from the IEEE by a maker of hardware.
    pub fn is_local(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// Tells whether a network card may have this address: one station, and not all zeroes.
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = NetError;

    /// Reads six two-digit hexadecimal numbers with `:` or `-` between them.
    fn from_str(text: &str) -> Result<Self, NetError> {
        parse(text).ok_or_else(|| {
            NetError::new(
                NetErrorKind::Syntax,
                format!(
                    "{text:?} is not a MAC address: write six two-digit hexadecimal numbers, for example a6:41:72:00:00:01"
                ),
            )
        })
    }
}

fn parse(text: &str) -> Option<MacAddress> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut parts = text.split(separator);
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let part = parts.next()?;
        // `from_str_radix` alone would take "+1".
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(MacAddress(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_print() {
        for (text, bytes) in [
            ("a6:41:72:00:00:01", [0xa6, 0x41, 0x72, 0, 0, 1]),
            ("A6-41-72-FF-0a-01", [0xa6, 0x41, 0x72, 0xff, 0x0a, 1]),
        ] {
            let mac: MacAddress = text.parse().unwrap();
            assert_eq!(mac.0, bytes);
            assert_eq!(mac.to_string(), text.to_lowercase().replace('-', ":"));
        }
    }

    #[test]
    fn refuse() {
        for text in [
            "",
            "a6",
            "a6:41:72:00:00",
            "a6:41:72:00:00:01:02",
            "a6:41:72:0:00:01",
            "a6:41:72:+1:00:01",
            "g6:41:72:00:00:01",
            "a6:41-72:00:00:01",
            "a641.7200.0001",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert_eq!(error.kind(), NetErrorKind::Syntax, "{text}");
            assert!(error.to_string().contains("six two-digit"), "{error}");
        }
    }

    #[test]
    fn random_ones_are_local_stations_and_differ() {
        let all: std::collections::HashSet<_> = (0..32).map(|_| MacAddress::random().unwrap()).collect();
        assert!(all.len() > 16);
        for mac in all {
            assert!(mac.is_local() && mac.is_station());
            assert_eq!(mac.0[..3], MacAddress::VM_PREFIX);
        }
    }

    #[test]
    fn router_address_is_stable_and_apart_from_cards() {
        let mac = MacAddress::of_router(Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(mac.to_string(), "a6:47:0a:00:02:02");
        assert!(mac.is_local() && mac.is_station());
        assert!(!MacAddress::BROADCAST.is_station());
        assert!(!MacAddress([0; 6]).is_station());
    }
}
