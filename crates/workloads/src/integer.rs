//! Loops over integers: hashing, sorting, checksums.

use std::hint::black_box;
use std::io;

use crate::measure::{Job, fold};
use crate::options::Options;
use crate::random::Random;

/// A byte at a time, each step waiting for a multiplication.
pub(crate) fn fnv_row(_: &Options) -> io::Result<Job> {
    let bytes = Random::new(1).bytes(1 << 20);
    Ok(Job::new(bytes.len() as u64, move || fnv(black_box(&bytes))))
}

/// FNV-1a, 64 bits.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Branches that no predictor can know.
pub(crate) fn quicksort_row(_: &Options) -> io::Result<Job> {
    let mut random = Random::new(2);
    let unsorted: Vec<u32> = (0..50_000).map(|_| (random.next() >> 32) as u32).collect();
    let mut numbers = unsorted.clone();
    Ok(Job::new(unsorted.len() as u64, move || {
        numbers.copy_from_slice(&unsorted);
        quicksort(black_box(&mut numbers));
        numbers.iter().step_by(97).fold(0, |sum, &number| fold(sum, u64::from(number)))
    }))
}

fn quicksort(numbers: &mut [u32]) {
    let mut rest = numbers;
    while rest.len() > 16 {
        let middle = partition(rest);
        let (left, right) = rest.split_at_mut(middle);
        // Recursion into the smaller half keeps the stack short.
        if left.len() < right.len() {
            quicksort(left);
            rest = right;
        } else {
            quicksort(right);
            rest = left;
        }
    }
    insertion_sort(rest);
}

/// Hoare's partition around the median of three: nothing before the returned index is greater than
/// anything after it, and both sides have elements.
fn partition(numbers: &mut [u32]) -> usize {
    let last = numbers.len() - 1;
    let (a, b, c) = (numbers[0], numbers[last / 2], numbers[last]);
    let pivot = a.min(b).max(a.max(b).min(c));
    let (mut low, mut high) = (0, last);
    loop {
        while numbers[low] < pivot {
            low += 1;
        }
        while numbers[high] > pivot {
            high -= 1;
        }
        if low >= high {
            // An element equal to the pivot may stand here; it must not leave the left side empty.
            return (high + 1).min(last);
        }
        numbers.swap(low, high);
        low += 1;
        high -= 1;
    }
}

fn insertion_sort(numbers: &mut [u32]) {
    for end in 1..numbers.len() {
        let mut at = end;
        while at > 0 && numbers[at - 1] > numbers[at] {
            numbers.swap(at - 1, at);
            at -= 1;
        }
    }
}

/// A table look-up for each byte.
pub(crate) fn crc32_row(_: &Options) -> io::Result<Job> {
    let bytes = Random::new(3).bytes(1 << 20);
    Ok(Job::new(bytes.len() as u64, move || u64::from(crc32(black_box(&bytes)))))
}

/// The checksum of Ethernet, zip and PNG.
fn crc32(bytes: &[u8]) -> u32 {
    static TABLE: [u32; 256] = crc32_table();
    !bytes.iter().fold(!0, |crc: u32, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn quicksort_sorts_whatever_it_gets() {
        let mut random = Random::new(9);
        for length in [0, 1, 2, 16, 17, 18, 100, 5000] {
            for range in [1, 2, 10, 1 << 30] {
                let mut numbers: Vec<u32> = (0..length).map(|_| random.below(range) as u32).collect();
                let mut expected = numbers.clone();
                expected.sort_unstable();
                quicksort(&mut numbers);
                assert_eq!(numbers, expected, "{length} numbers below {range}");
                quicksort(&mut numbers);
                assert_eq!(numbers, expected);
                numbers.reverse();
                quicksort(&mut numbers);
                assert_eq!(numbers, expected);
            }
        }
    }
}
