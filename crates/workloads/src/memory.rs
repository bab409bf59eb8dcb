//! Copying, walking through memory, and the C library's allocator.

use std::ffi::CStr;
use std::hint::black_box;
use std::io;

use crate::measure::{Job, fold};
use crate::options::Options;
use crate::random::Random;

/// A copy as large as caches of the second level.
pub(crate) fn memcpy_large_row(_: &Options) -> io::Result<Job> {
    const COPIES: usize = 40;
    let from = Random::new(11).bytes(1 << 20);
    let mut to = vec![0; from.len()];
    Ok(Job::new(COPIES as u64, move || {
        for _ in 0..COPIES {
            black_box(&mut to).copy_from_slice(black_box(&from));
        }
        sample(&to)
    }))
}

/// Copies of a size that programs often make, from and to anywhere in a page.
pub(crate) fn memcpy_small_row(_: &Options) -> io::Result<Job> {
    const COPIES: usize = 100_000;
    let from = Random::new(12).bytes(4096);
    let mut to = vec![0; from.len()];
    Ok(Job::new(COPIES as u64, move || {
        to.fill(0);
        for copy in 0..COPIES {
            // Unknown to the compiler, which would otherwise not call the function.
            let length = black_box(100);
            let (a, b) = (copy * 37 % 3900, copy * 53 % 3900);
            to[b..b + length].copy_from_slice(&from[a..a + length]);
        }
        sample(black_box(&to))
    }))
}

fn sample(bytes: &[u8]) -> u64 {
    bytes.iter().step_by(bytes.len() / 1024).fold(0, |sum, &byte| fold(sum, u64::from(byte)))
}

/// The widest vectors that the C library finds on the CPU.
pub(crate) fn strlen_row(_: &Options) -> io::Result<Job> {
    const STRINGS: usize = 5000;
    let mut bytes = vec![b'x'; 16 << 10];
    bytes.push(0);
    Ok(Job::fallible(STRINGS as u64, move || {
        let mut sum = 0;
        for _ in 0..STRINGS {
            let text = CStr::from_bytes_with_nul(black_box(&bytes)).map_err(io::Error::other)?;
            // SAFETY: the pointer is that of a string with a zero at its end.
            sum += unsafe { libc::strlen(black_box(text.as_ptr())) } as u64;
        }
        Ok(sum)
    }))
}

/// A list that fits into the first level of caches.
pub(crate) fn list_small_row(_: &Options) -> io::Result<Job> {
    Ok(list(256, 1_000_000))
}

/// A list of 4 MiB.
pub(crate) fn list_large_row(_: &Options) -> io::Result<Job> {
    Ok(list(65_536, 65_536))
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Node {
    next: usize,
    value: u64,
}

/// A ring through all nodes in no order, and a walk of this many steps along it.
fn list(nodes: usize, steps: u64) -> Job {
    let ring = ring(nodes);
    Job::new(steps, move || walk(black_box(&ring), steps))
}

fn ring(nodes: usize) -> Vec<Node> {
    let mut random = Random::new(13);
    let mut order: Vec<usize> = (0..nodes).collect();
    for last in (1..nodes).rev() {
        order.swap(last, random.below(last + 1));
    }
    let mut ring = vec![Node { next: 0, value: 0 }; nodes];
    for (place, &at) in order.iter().enumerate() {
        ring[at] = Node { next: order[(place + 1) % nodes], value: random.next() };
    }
    ring
}

#[inline(never)]
fn walk(ring: &[Node], steps: u64) -> u64 {
    let (mut at, mut sum) = (0, 0_u64);
    for _ in 0..steps {
        let node = &ring[at];
        sum = sum.wrapping_add(node.value);
        at = node.next;
    }
    fold(sum, at as u64)
}

/// Blocks of mixed sizes that live for a while, as in most programs.
pub(crate) fn malloc_row(_: &Options) -> io::Result<Job> {
    const BLOCKS: usize = 256;
    const OPERATIONS: u64 = 60_000;
    Ok(Job::new(OPERATIONS, || {
        let mut random = Random::new(14);
        let mut blocks: [Vec<u64>; BLOCKS] = std::array::from_fn(|_| Vec::new());
        let mut sum = 0;
        for operation in 0..OPERATIONS {
            let number = random.next();
            let block = &mut blocks[(number >> 32) as usize % BLOCKS];
            sum = fold(sum, block.last().copied().unwrap_or(0));
            // Mostly small, sometimes up to 4 KiB.
            let words = if number & 15 == 0 { number as usize >> 8 & 511 } else { number as usize >> 8 & 31 };
            *block = black_box(Vec::with_capacity(words + 1));
            block.push(operation);
        }
        sum
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_goes_through_each_node_once() {
        let ring = ring(256);
        let (mut at, mut seen) = (0, vec![false; ring.len()]);
        for _ in 0..ring.len() {
            assert!(!std::mem::replace(&mut seen[at], true));
            at = ring[at].next;
        }
        assert_eq!(at, 0);
    }
}
