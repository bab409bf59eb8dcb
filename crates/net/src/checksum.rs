//! The Internet checksum (RFC 1071), shaped so that the compiler makes vector code of it.

use std::net::Ipv4Addr;

/// A running one's-complement sum over 16-bit words.
///
/// The sum is kept in the host's byte order and turned round once at the end: addition with end-around carry
/// does not care (RFC 1071 §2.B). Every piece but the last must have an even length.
#[derive(Clone, Copy, Default)]
pub(crate) struct Checksum(u64);

impl Checksum {
    /// Starts with the pseudo header of TCP and UDP over IPv4 (RFC 9293 §3.1, RFC 768).
    pub(crate) fn pseudo(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> Self {
        let mut header = [0; 12];
        header[0..4].copy_from_slice(&source.octets());
        header[4..8].copy_from_slice(&destination.octets());
        header[9] = protocol;
        header[10..12].copy_from_slice(&(length as u16).to_be_bytes());
        let mut sum = Self::default();
        sum.add(&header);
        sum
    }

    /// Adds the bytes of one piece.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        // Eight lanes of 64 bits, each fed 32 bits at a time: no lane can overflow for any packet.
        let mut lanes = [0u64; 8];
        let mut blocks = bytes.chunks_exact(32);
        for block in &mut blocks {
            for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        let mut pairs = blocks.remainder().chunks_exact(2);
        for pair in &mut pairs {
            lanes[0] += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        if let [last] = *pairs.remainder() {
            lanes[1] += u64::from(u16::from_ne_bytes([last, 0]));
        }
        for lane in lanes {
            self.0 += (lane & 0xffff_ffff) + (lane >> 32);
        }
    }

    /// Returns the checksum to put into a header whose own checksum field was zero, in network order.
    pub(crate) fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_ne_bytes()
    }

    /// Tells whether data that contains its own checksum sums up as it must.
    pub(crate) fn verifies(self) -> bool {
        self.finish() == [0, 0]
    }
}

/// Returns the checksum of one piece, in network order.
pub(crate) fn of(bytes: &[u8]) -> [u8; 2] {
    let mut sum = Checksum::default();
    sum.add(bytes);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word by word.
    fn slow(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn example_of_the_standard() {
        // RFC 1071 §3.
        assert_eq!(of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn agrees_with_the_definition_at_every_length() {
        let data: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for length in (0..200).chain([1460, 1461, 9000, 65_535, 70_000]) {
            assert_eq!(of(&data[..length]), slow(&data[..length]), "length {length}");
        }
        assert_eq!(of(&vec![0xff; 65_535]), slow(&vec![0xff; 65_535]));
    }

    #[test]
    fn pieces_make_the_whole_and_verify() {
        let mut packet = vec![7u8; 101];
        packet[16..18].fill(0);
        let source = Ipv4Addr::new(10, 0, 2, 15);
        let destination = Ipv4Addr::new(10, 0, 2, 2);
        let mut sum = Checksum::pseudo(source, destination, 6, packet.len());
        sum.add(&packet[..20]);
        sum.add(&packet[20..]);
        let value = sum.finish();
        packet[16..18].copy_from_slice(&value);
        let mut check = Checksum::pseudo(source, destination, 6, packet.len());
        check.add(&packet);
        assert!(check.verifies());
        packet[50] ^= 1;
        let mut check = Checksum::pseudo(source, destination, 6, packet.len());
        check.add(&packet);
        assert!(!check.verifies());
    }
}
