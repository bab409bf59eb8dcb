//! Putting fragmented IPv4 packets of the guest together (RFC 791 §3.2, RFC 815), within bounds.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::core::PACKET_MAX;
use super::wire::{IPV4, Ipv4};

/// Packets in the making at a time; the oldest makes room.
const PACKETS_MAX: usize = 16;
/// Pieces of one packet: enough for 64 KiB in the smallest pieces that real stacks send.
const PIECES_MAX: usize = 256;
/// How long the pieces of one packet may take to come (RFC 791 §3.2 suggests 15 seconds).
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, PartialEq, Eq)]
struct Id {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    ident: u16,
}

#[derive(Debug)]
struct Partial {
    id: Id,
    begun: Instant,
    bytes: Vec<u8>,
    /// Where the pieces lie that have come.
    pieces: Vec<(usize, usize)>,
    /// Length of the whole, known once the last piece has come.
    total: Option<usize>,
}

/// Packets in the making.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    partials: Vec<Partial>,
}

impl Reassembly {
    /// Takes a fragment. Returns the payload of the whole packet if this was the last piece missing.
    ///
    /// Pieces that overlap or contradict each other make the packet worthless, as in RFC 5722: nobody sends
    /// such but to deceive.
    pub(super) fn take(&mut self, packet: &Ipv4<'_>, now: Instant) -> Option<Vec<u8>> {
        self.partials.retain(|partial| now.saturating_duration_since(partial.begun) < TIMEOUT);
        let start = packet.fragment_offset;
        let end = start + packet.payload.len();
        if packet.payload.is_empty()
            || end > PACKET_MAX - IPV4
            || (packet.more_fragments && !packet.payload.len().is_multiple_of(8))
        {
            return None;
        }
        let id = Id {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            ident: packet.ident,
        };
        let index = match self.partials.iter().position(|partial| partial.id == id) {
            Some(index) => index,
            None => {
                if self.partials.len() == PACKETS_MAX {
                    self.partials.remove(0);
                }
                self.partials.push(Partial {
                    id,
                    begun: now,
                    bytes: Vec::new(),
                    pieces: Vec::new(),
                    total: None,
                });
                self.partials.len() - 1
            }
        };
        let partial = &mut self.partials[index];
        // The same piece twice is only a repetition.
        if partial.pieces.contains(&(start, end)) {
            return None;
        }
        let overlaps =
            partial.pieces.iter().any(|&(other_start, other_end)| start < other_end && other_start < end);
        let last = (!packet.more_fragments).then_some(end);
        let contradicts = match (partial.total, last) {
            (Some(_), Some(_)) => true,
            (Some(total), None) => end > total,
            (None, Some(total)) => partial.bytes.len() > total,
            (None, None) => false,
        };
        if overlaps || contradicts || partial.pieces.len() == PIECES_MAX {
            self.partials.remove(index);
            return None;
        }
        partial.total = partial.total.or(last);
        if partial.bytes.len() < end {
            partial.bytes.resize(end, 0);
        }
        partial.bytes[start..end].copy_from_slice(packet.payload);
        partial.pieces.push((start, end));
        // Pieces do not overlap, so their lengths add up to the total only when none is missing.
        let have: usize = partial.pieces.iter().map(|(start, end)| end - start).sum();
        if partial.total == Some(have) { Some(self.partials.remove(index).bytes) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddress;

    fn fragment(ident: u16, offset: usize, more: bool, payload: &[u8]) -> Ipv4<'_> {
        Ipv4 {
            source_mac: MacAddress([2, 0, 0, 0, 0, 1]),
            source: Ipv4Addr::new(10, 0, 2, 15),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            protocol: 17,
            ttl: 64,
            ident,
            more_fragments: more,
            fragment_offset: offset,
            header: &[],
            payload,
        }
    }

    #[test]
    fn any_order_makes_the_whole() {
        let data: Vec<u8> = (0..2000u32).map(|i| (i * 7) as u8).collect();
        let pieces = [(0, 800), (800, 1600), (1600, 2000)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut reassembly = Reassembly::default();
            let now = Instant::now();
            for (n, &index) in order.iter().enumerate() {
                let (start, end) = pieces[index];
                let piece = fragment(1, start, index != 2, &data[start..end]);
                let whole = reassembly.take(&piece, now);
                if n < 2 {
                    assert_eq!(whole, None);
                    // Repetition changes nothing.
                    assert_eq!(reassembly.take(&piece, now), None);
                } else {
                    assert_eq!(whole.as_deref(), Some(&data[..]));
                }
            }
            assert!(reassembly.partials.is_empty());
        }
    }

    #[test]
    fn contradictions_are_dropped() {
        let data = [7; 1024];
        let now = Instant::now();
        for second in [
            fragment(1, 8, true, &data[..16]),
            fragment(1, 0, false, &data[..8]),
            fragment(1, 0, true, &data[..8]),
        ] {
            let mut reassembly = Reassembly::default();
            assert_eq!(reassembly.take(&fragment(1, 0, true, &data[..16]), now), None);
            assert_eq!(reassembly.take(&second, now), None);
            assert!(reassembly.partials.is_empty());
        }
        let mut reassembly = Reassembly::default();
        for bad in [
            fragment(1, 0, true, &data[..7]),
            fragment(1, 0, true, &[]),
            fragment(1, 65_528, false, &data[..8]),
        ] {
            assert_eq!(reassembly.take(&bad, now), None);
            assert!(reassembly.partials.is_empty());
        }
    }

    #[test]
    fn memory_is_bounded_and_old_pieces_are_forgotten() {
        let data = [7; 64];
        let mut reassembly = Reassembly::default();
        let now = Instant::now();
        for ident in 0..1000 {
            reassembly.take(&fragment(ident, 0, true, &data), now);
            assert!(reassembly.partials.len() <= PACKETS_MAX);
        }
        for i in 0..10_000 {
            reassembly.take(&fragment(7, (i * 16) % 60_000, true, &data[..8]), now);
        }
        assert!(reassembly.partials.iter().all(|partial| partial.pieces.len() <= PIECES_MAX));
        reassembly.take(&fragment(5000, 0, true, &data), now + TIMEOUT);
        assert_eq!(reassembly.partials.len(), 1);
    }
}
