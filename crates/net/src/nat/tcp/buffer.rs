//! Byte queues made of chunks from one bounded pool.
//!
//! A queue holds only the chunks that its bytes need, so thousands of idle flows cost nothing, and the pool
//! bounds what all flows hold together. Chunks are recycled: moving data allocates nothing once the pool is
//! warm.

use std::collections::VecDeque;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};

/// Bytes in a chunk.
pub(crate) const CHUNK: usize = 16 << 10;

/// Slices handed to one system call at most.
pub(crate) const SLICES_MAX: usize = 16;

/// Chunks that are kept for reuse; more are given back to the allocator.
const SPARE_MAX: usize = 256;

type Chunk = Box<[u8]>;

/// Where all queues get their memory.
pub(crate) struct ChunkPool {
    spare: Vec<Chunk>,
    in_use: usize,
    limit: usize,
}

impl fmt::Debug for ChunkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} chunks in use", self.in_use, self.limit)
    }
}

impl ChunkPool {
    /// Makes a pool that lets out at most `bytes` bytes (rounded down to chunks).
    pub(crate) fn new(bytes: usize) -> Self {
        Self { spare: Vec::new(), in_use: 0, limit: bytes / CHUNK }
    }

    /// Returns how many bytes can still be let out.
    pub(crate) fn available(&self) -> usize {
        (self.limit - self.in_use) * CHUNK
    }

    /// Returns how many bytes are let out.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use * CHUNK
    }

    fn take(&mut self) -> Option<Chunk> {
        if self.in_use == self.limit {
            return None;
        }
        self.in_use += 1;
        Some(self.spare.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }

    fn give(&mut self, chunk: Chunk) {
        self.in_use -= 1;
        if self.spare.len() < SPARE_MAX {
            self.spare.push(chunk);
        }
    }
}

/// The pools of the two directions. They are apart so that data stuck on its way to the guest never keeps
/// data from the guest from moving, nor the other way round.
#[derive(Debug)]
pub(crate) struct Pools {
    /// For bytes on their way to the guest.
    pub(crate) tx: ChunkPool,
    /// For bytes from the guest.
    pub(crate) rx: ChunkPool,
}

impl Pools {
    /// Makes two pools that together let out at most `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { tx: ChunkPool::new(bytes / 2), rx: ChunkPool::new(bytes / 2) }
    }

    /// Returns how many bytes are let out.
    pub(crate) fn in_use(&self) -> usize {
        self.tx.in_use() + self.rx.in_use()
    }
}

/// A queue of bytes; it may also hold bytes that lie beyond its end, written there ahead of time.
///
/// Every queue must be [`clear`](Self::clear)ed into its pool before it is dropped.
#[derive(Default)]
pub(crate) struct ChunkQueue {
    chunks: VecDeque<Chunk>,
    /// Where the first byte lies in the first chunk.
    head: usize,
    len: usize,
}

impl fmt::Debug for ChunkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the bytes: there may be a mebibyte of them.
        write!(f, "{} bytes in {} chunks", self.len, self.chunks.len())
    }
}

impl ChunkQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gets memory for the first `end` bytes, counted from the first byte of the queue. Returns how many are
    /// backed; fewer than `end` when the pool has no more.
    pub(crate) fn reserve(&mut self, end: usize, pool: &mut ChunkPool) -> usize {
        while self.backed() < end {
            match pool.take() {
                Some(chunk) => self.chunks.push_back(chunk),
                None => break,
            }
        }
        self.backed()
    }

    /// Gets memory for the first `end` bytes, or none of what is missing. Returns whether they are backed.
    pub(crate) fn try_reserve(&mut self, end: usize, pool: &mut ChunkPool) -> bool {
        end.saturating_sub(self.backed()) <= pool.available() && self.reserve(end, pool) >= end
    }

    fn backed(&self) -> usize {
        self.chunks.len() * CHUNK - self.head
    }

    /// Writes bytes at a place counted from the first byte of the queue; that memory must be reserved.
    /// Does not move the end.
    pub(crate) fn write_at(&mut self, offset: usize, mut data: &[u8]) {
        let mut position = self.head + offset;
        while !data.is_empty() {
            let chunk = &mut self.chunks[position / CHUNK][position % CHUNK..];
            let count = data.len().min(chunk.len());
            chunk[..count].copy_from_slice(&data[..count]);
            data = &data[count..];
            position += count;
        }
    }

    /// Moves the end by `count` bytes that have been written beyond it.
    pub(crate) fn extend(&mut self, count: usize) {
        self.len += count;
        debug_assert!(self.len <= self.backed());
    }

    /// Copies out the bytes from `offset` on; they must be there.
    pub(crate) fn read_at(&self, offset: usize, mut out: &mut [u8]) {
        debug_assert!(offset + out.len() <= self.len);
        let mut position = self.head + offset;
        while !out.is_empty() {
            let chunk = &self.chunks[position / CHUNK][position % CHUNK..];
            let count = out.len().min(chunk.len());
            out[..count].copy_from_slice(&chunk[..count]);
            out = &mut out[count..];
            position += count;
        }
    }

    /// Removes the first `count` bytes; they must be there.
    pub(crate) fn consume(&mut self, count: usize, pool: &mut ChunkPool) {
        debug_assert!(count <= self.len);
        self.len -= count;
        self.head += count;
        while self.head >= CHUNK {
            self.head -= CHUNK;
            if let Some(chunk) = self.chunks.pop_front() {
                pool.give(chunk);
            }
        }
    }

    /// Gives back the chunks that lie wholly beyond the end, when nothing has been written ahead.
    pub(crate) fn trim(&mut self, pool: &mut ChunkPool) {
        let needed = if self.len == 0 { 0 } else { (self.head + self.len).div_ceil(CHUNK) };
        while self.chunks.len() > needed
            && let Some(chunk) = self.chunks.pop_back()
        {
            pool.give(chunk);
        }
        if self.chunks.is_empty() {
            self.head = 0;
        }
    }

    /// Empties the queue and gives back all memory.
    pub(crate) fn clear(&mut self, pool: &mut ChunkPool) {
        self.len = 0;
        self.head = 0;
        while let Some(chunk) = self.chunks.pop_back() {
            pool.give(chunk);
        }
    }

    /// Returns the first bytes as slices, to be written with one call; the second value is how many are used.
    pub(crate) fn slices(&self) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        let mut left = self.len;
        let mut start = self.head;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            if left == 0 {
                break;
            }
            let count = left.min(CHUNK - start);
            *slice = IoSlice::new(&chunk[start..start + count]);
            used += 1;
            left -= count;
            start = 0;
        }
        (slices, used)
    }

    /// Returns the reserved memory from the end on, up to `count` bytes, as slices to be read into with one
    /// call; the second value is how many are used.
    pub(crate) fn spare_slices(&mut self, count: usize) -> ([IoSliceMut<'_>; SLICES_MAX], usize) {
        let mut slices = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut used = 0;
        let position = self.head + self.len;
        let mut left = count.min(self.backed() - self.len);
        let mut start = position % CHUNK;
        for (slice, chunk) in slices.iter_mut().zip(self.chunks.range_mut(position / CHUNK..)) {
            if left == 0 {
                break;
            }
            let count = left.min(CHUNK - start);
            *slice = IoSliceMut::new(&mut chunk[start..start + count]);
            used += 1;
            left -= count;
            start = 0;
        }
        (slices, used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(from: usize, count: usize) -> Vec<u8> {
        (from..from + count).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn a_queue_is_a_queue() {
        let mut pool = ChunkPool::new(8 * CHUNK);
        let mut queue = ChunkQueue::default();
        let (mut written, mut taken) = (0, 0);
        for step in 0..500usize {
            let count = (step * 977) % 30_000;
            let end = queue.len() + count;
            if queue.reserve(end, &mut pool) >= end {
                queue.write_at(queue.len(), &pattern(written, count));
                queue.extend(count);
                written += count;
            }
            let count = (step * 1543) % 31_000;
            let count = count.min(queue.len());
            let mut out = vec![0; count];
            queue.read_at(0, &mut out);
            assert_eq!(out, pattern(taken, count));
            queue.consume(count, &mut pool);
            taken += count;
            assert!(pool.in_use() <= 8 * CHUNK);
        }
        assert!(taken > 1_000_000);
        queue.clear(&mut pool);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn bytes_written_ahead_are_found_when_the_end_reaches_them() {
        let mut pool = ChunkPool::new(4 * CHUNK);
        let mut queue = ChunkQueue::default();
        assert!(queue.reserve(3 * CHUNK, &mut pool) >= 3 * CHUNK);
        let late = pattern(2 * CHUNK - 5, 100);
        queue.write_at(2 * CHUNK - 5, &late);
        queue.write_at(0, &pattern(0, 2 * CHUNK - 5));
        queue.extend(2 * CHUNK - 5);
        queue.consume(CHUNK + 1, &mut pool);
        queue.extend(100);
        let mut out = vec![0; queue.len()];
        queue.read_at(0, &mut out);
        assert_eq!(out, pattern(CHUNK + 1, CHUNK - 6 + 100));
        queue.clear(&mut pool);
    }

    #[test]
    fn the_pool_is_a_bound_and_gets_all_back() {
        let mut pool = ChunkPool::new(3 * CHUNK + 1);
        let mut queue = ChunkQueue::default();
        assert_eq!(queue.reserve(100 * CHUNK, &mut pool), 3 * CHUNK);
        assert_eq!(pool.available(), 0);
        assert!(!queue.try_reserve(3 * CHUNK + 1, &mut pool));
        assert!(queue.try_reserve(3 * CHUNK, &mut pool));
        queue.trim(&mut pool);
        assert_eq!(pool.available(), 3 * CHUNK);
        queue.reserve(10, &mut pool);
        queue.extend(10);
        queue.consume(10, &mut pool);
        queue.trim(&mut pool);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(queue.head, 0);
    }

    #[test]
    fn slices_cover_exactly_the_bytes() {
        let mut pool = ChunkPool::new(64 * CHUNK);
        let mut queue = ChunkQueue::default();
        queue.reserve(3 * CHUNK, &mut pool);
        let data = pattern(0, 2 * CHUNK + 10);
        queue.write_at(0, &data);
        queue.extend(data.len());
        queue.consume(CHUNK - 1, &mut pool);
        let (slices, used) = queue.slices();
        let joined: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!(joined, data[CHUNK - 1..]);
        assert_eq!(used, 3);

        queue.reserve(queue.len() + 2 * CHUNK, &mut pool);
        let before = queue.len();
        let (mut slices, used) = queue.spare_slices(CHUNK + 7);
        let total: usize = slices[..used].iter().map(|slice| slice.len()).sum();
        assert_eq!(total, CHUNK + 7);
        for slice in &mut slices[..used] {
            slice.fill(0xee);
        }
        queue.extend(CHUNK + 7);
        let mut out = vec![0; CHUNK + 7];
        queue.read_at(before, &mut out);
        assert!(out.iter().all(|&byte| byte == 0xee));
        queue.clear(&mut pool);
    }
}
