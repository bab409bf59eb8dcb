//! Compression by references to what came before: hashing, comparing, copying, in steps of a few bytes.
//!
//! A compressed text is a row of tokens. A byte below 128 is followed by that many literal bytes; one
//! from 128 on stands for a match of its value less 124 bytes, followed by the distance in two bytes.

use std::hint::black_box;
use std::io;

use crate::integer::fnv;
use crate::measure::Job;
use crate::options::Options;
use crate::random::Random;

const LENGTH: usize = 128 << 10;
const MATCH_MIN: usize = 4;
const MATCH_MAX: usize = 127 + MATCH_MIN;
const LITERALS_MAX: usize = 127;
const DISTANCE_MAX: usize = u16::MAX as usize;
const HASH_BITS: u32 = 13;

/// Compression of something like a text, and expansion of the result.
pub(crate) fn row(_: &Options) -> io::Result<Job> {
    let text = text();
    let (mut packed, mut unpacked) = (Vec::with_capacity(LENGTH), Vec::with_capacity(LENGTH));
    Ok(Job::fallible(text.len() as u64, move || {
        compress(black_box(&text), &mut packed);
        expand(&packed, &mut unpacked);
        if unpacked != text {
            return Err(io::Error::other("what was compressed is not what came out"));
        }
        Ok(fnv(&packed))
    }))
}

/// Words of some letters, frequent ones more often.
fn text() -> Vec<u8> {
    let mut random = Random::new(5);
    let words: Vec<Vec<u8>> = (0..512)
        .map(|_| {
            let length = 2 + random.below(8);
            (0..length).map(|_| b'a' + random.below(26) as u8).collect()
        })
        .collect();
    let mut text = Vec::with_capacity(LENGTH + 16);
    while text.len() < LENGTH {
        let range = 1 << (1 + random.below(9));
        text.extend_from_slice(&words[random.below(range)]);
        text.push(if random.below(12) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(LENGTH);
    text
}

fn compress(text: &[u8], packed: &mut Vec<u8>) {
    packed.clear();
    let mut heads = [usize::MAX; 1 << HASH_BITS];
    let (mut at, mut literals) = (0, 0);
    while at + MATCH_MIN <= text.len() {
        let word = u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        let slot = (word.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize;
        let candidate = std::mem::replace(&mut heads[slot], at);
        let matched = if candidate != usize::MAX && at - candidate <= DISTANCE_MAX {
            let most = MATCH_MAX.min(text.len() - at);
            text[candidate..].iter().zip(&text[at..at + most]).take_while(|(a, b)| a == b).count()
        } else {
            0
        };
        if matched >= MATCH_MIN {
            write_literals(&text[literals..at], packed);
            packed.push(128 + (matched - MATCH_MIN) as u8);
            packed.extend_from_slice(&((at - candidate) as u16).to_le_bytes());
            at += matched;
            literals = at;
        } else {
            at += 1;
        }
    }
    write_literals(&text[literals..], packed);
}

fn write_literals(literals: &[u8], packed: &mut Vec<u8>) {
    for part in literals.chunks(LITERALS_MAX) {
        packed.push(part.len() as u8);
        packed.extend_from_slice(part);
    }
}

/// Expands what [`compress`] made.
fn expand(packed: &[u8], text: &mut Vec<u8>) {
    text.clear();
    let mut at = 0;
    while at < packed.len() {
        let token = usize::from(packed[at]);
        if token < 128 {
            text.extend_from_slice(&packed[at + 1..at + 1 + token]);
            at += 1 + token;
        } else {
            let distance = usize::from(u16::from_le_bytes([packed[at + 1], packed[at + 2]]));
            // A match may reach into itself, so it is copied byte by byte.
            for from in text.len() - distance..text.len() - distance + token - 128 + MATCH_MIN {
                text.push(text[from]);
            }
            at += 3;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_out_again() {
        let mut random = Random::new(1);
        let noise = random.bytes(70_000);
        for sample in [&b""[..], b"a", b"abc", b"abcd", &[7; 1000], &noise, &text()] {
            let (mut packed, mut unpacked) = (Vec::new(), Vec::new());
            compress(sample, &mut packed);
            expand(&packed, &mut unpacked);
            assert!(unpacked == sample, "{} bytes", sample.len());
        }
    }

    #[test]
    fn a_text_gets_smaller() {
        let mut packed = Vec::new();
        compress(&text(), &mut packed);
        assert!(packed.len() < LENGTH * 2 / 3, "{}", packed.len());
    }
}
