//! A descriptor chain, taken out of its ring and checked as a whole.

use super::RingError;
use memory::{Bytes, GuestAddress, GuestMemory, Ram};
use virtio_queue::DescriptorChain;

/// The longest chain that is taken, in descriptors. No driver comes near; without a limit an indirect
/// table could hold 65535.
pub const CHAIN_LEN_MAX: usize = 1024;

/// A stretch of guest memory that a descriptor names. Not yet known to be RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A chain of buffers: first those that the device reads, then those that it writes.
///
/// It is a copy: what the guest does to the descriptors later changes nothing here. Kept by workers and
/// loaded again and again, so that taking a chain allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// Creates an empty chain, to be loaded by [`Queue::pop`](super::Queue::pop).
    pub fn new() -> Chain {
        Chain::default()
    }

    pub(super) fn load(&mut self, raw: DescriptorChain<&GuestMemory>) -> Result<(), RingError> {
        self.head = raw.head_index();
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
        // The iterator just ends where a chain is malformed. It was whole only if the last descriptor
        // that came says that none follows.
        let mut ends = false;
        for descriptor in raw {
            if self.readable.len() + self.writable.len() == CHAIN_LEN_MAX {
                return Err(RingError::BadChain);
            }
            ends = !descriptor.has_next();
            let span = Span { gpa: descriptor.addr().0, len: descriptor.len() };
            // The iterator has made sure that all lengths together fit 32 bits.
            if descriptor.is_write_only() {
                self.writable.push(span);
                self.writable_len += span.len;
            } else if self.writable.is_empty() {
                self.readable.push(span);
                self.readable_len += span.len;
            } else {
                return Err(RingError::BadOrder);
            }
        }
        if ends { Ok(()) } else { Err(RingError::BadChain) }
    }

    /// Index of the first descriptor: what the used ring names the chain by.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers that the device reads.
    pub fn readable(&self) -> &[Span] {
        &self.readable
    }

    /// The buffers that the device writes.
    pub fn writable(&self) -> &[Span] {
        &self.writable
    }

    /// Total length of the buffers that the device reads.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Total length of the buffers that the device writes.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Fills `bytes` from byte `at` of the readable part on; returns how many there were.
    ///
    /// # Errors
    /// [`RingError::BadBuffer`] when a buffer is not RAM.
    pub fn read_at(&self, ram: &Ram, at: u32, bytes: &mut [u8]) -> Result<usize, RingError> {
        let mut done = 0;
        for (gpa, len) in part(&self.readable, at, bytes.len()) {
            ram.guest()
                .read_slice(&mut bytes[done..done + len], GuestAddress(gpa))
                .map_err(|_| RingError::BadBuffer)?;
            done += len;
        }
        Ok(done)
    }

    /// Writes `bytes` at byte `at` of the writable part; returns how many fitted.
    ///
    /// # Errors
    /// [`RingError::BadBuffer`] when a buffer is not RAM.
    pub fn write_at(&self, ram: &Ram, at: u32, bytes: &[u8]) -> Result<usize, RingError> {
        let mut done = 0;
        for (gpa, len) in part(&self.writable, at, bytes.len()) {
            ram.guest()
                .write_slice(&bytes[done..done + len], GuestAddress(gpa))
                .map_err(|_| RingError::BadBuffer)?;
            done += len;
        }
        Ok(done)
    }

    /// The stretches of `len` bytes of the readable part from byte `at` on.
    pub fn readable_part(&self, at: u32, len: usize) -> impl Iterator<Item = Span> + '_ {
        part(&self.readable, at, len).map(|(gpa, len)| Span { gpa, len: len as u32 })
    }

    /// The stretches of `len` bytes of the writable part from byte `at` on.
    pub fn writable_part(&self, at: u32, len: usize) -> impl Iterator<Item = Span> + '_ {
        part(&self.writable, at, len).map(|(gpa, len)| Span { gpa, len: len as u32 })
    }
}

/// The stretches of `len` bytes from `at` on, as far as there are so many. Addresses wrap rather than
/// overflow: what comes of that is not RAM.
fn part(spans: &[Span], at: u32, len: usize) -> impl Iterator<Item = (u64, usize)> + '_ {
    let (mut skip, mut left) = (at, len);
    spans.iter().filter_map(move |span| {
        if left == 0 || skip >= span.len {
            skip -= span.len.min(skip);
            return None;
        }
        let here = ((span.len - skip) as usize).min(left);
        let gpa = span.gpa.wrapping_add(skip as u64);
        (skip, left) = (0, left - here);
        Some((gpa, here))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_spans() {
        let spans = [Span { gpa: 100, len: 10 }, Span { gpa: 300, len: 0 }, Span { gpa: 200, len: 5 }];
        for (at, len, expected) in [
            (0, 15, &[(100, 10), (200, 5)][..]),
            (0, 99, &[(100, 10), (200, 5)]),
            (9, 2, &[(109, 1), (200, 1)]),
            (10, 5, &[(200, 5)]),
            (14, 5, &[(204, 1)]),
            (15, 5, &[]),
            (3, 0, &[]),
        ] {
            assert_eq!(part(&spans, at, len).collect::<Vec<_>>(), expected, "{at} {len}");
        }
    }
}
