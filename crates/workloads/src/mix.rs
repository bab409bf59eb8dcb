//! A mix of what small programs do, in proportions like those of CoreMark: lists, matrices of integers, a
//! state machine over text, and a checksum over all of it.

use std::hint::black_box;
use std::io;

use crate::measure::{Job, fold};
use crate::options::Options;
use crate::random::Random;

const ITERATIONS: u64 = 100;
const NODES: usize = 64;
const SIDE: usize = 9;

/// The row.
pub(crate) fn row(_: &Options) -> io::Result<Job> {
    let inputs = Inputs::new();
    Ok(Job::new(ITERATIONS, move || {
        (0..ITERATIONS).fold(0, |sum, seed| fold(sum, u64::from(iteration(black_box(&inputs), seed as u16))))
    }))
}

struct Inputs {
    list: List,
    a: [[i16; SIDE]; SIDE],
    b: [[i16; SIDE]; SIDE],
    text: Vec<u8>,
}

impl Inputs {
    fn new() -> Self {
        let mut random = Random::new(6);
        let mut small = || (random.next() >> 52) as i16;
        let mut matrix = || std::array::from_fn(|_| std::array::from_fn(|_| small()));
        let (a, b) = (matrix(), matrix());
        let list = List::new(&mut random);
        // Numbers of all forms, and some that are none.
        let words = ["5012", "-874", "+122", "35.54400", ".1234500", "-110.700", "+0.64400", "5.500e+3"];
        let more = ["-.123e-2", "-87e+832", "+0.6e-12", "T0.3e-1F", "-T.T++Tq", "1T3.4e4z", "34.0e-T^", "x"];
        let words = [words, more].concat();
        let text = (0..48).map(|_| words[random.below(words.len())]).collect::<Vec<_>>().join(",");
        Self { list, a, b, text: text.into_bytes() }
    }
}

fn iteration(inputs: &Inputs, seed: u16) -> u16 {
    let mut list = inputs.list.clone();
    let mut crc = 0;
    for wanted in 0..10 {
        crc = crc16(crc, list.find(seed.wrapping_add(wanted) & 0xff).unwrap_or(u16::MAX));
        list.reverse();
    }
    list.sort();
    crc = list.values().fold(crc, crc16);
    crc = multiply(&inputs.a, &inputs.b, seed as i16)
        .iter()
        .flatten()
        .fold(crc, |crc, &cell| crc16(crc16(crc, cell as u16), (cell >> 16) as u16));
    scan(&inputs.text, seed).iter().fold(crc, |crc, &count| crc16(crc, count))
}

/// A linked list in an arena, so that links are indices.
#[derive(Clone)]
struct List {
    head: Option<u8>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy)]
struct Node {
    value: u16,
    next: Option<u8>,
}

impl List {
    fn new(random: &mut Random) -> Self {
        let node = |index: usize, value| {
            let next = (index + 1 < NODES).then_some(index as u8 + 1);
            Node { value, next }
        };
        let nodes = (0..NODES).map(|index| node(index, random.below(256) as u16)).collect();
        Self { head: Some(0), nodes }
    }

    fn values(&self) -> impl Iterator<Item = u16> {
        std::iter::successors(self.head, |&at| self.nodes[usize::from(at)].next)
            .map(|at| self.nodes[usize::from(at)].value)
    }

    /// The position of a value.
    fn find(&self, wanted: u16) -> Option<u16> {
        self.values().position(|value| value == wanted).map(|position| position as u16)
    }

    fn reverse(&mut self) {
        let (mut rest, mut done) = (self.head, None);
        while let Some(at) = rest {
            let next = &mut self.nodes[usize::from(at)].next;
            rest = std::mem::replace(next, done);
            done = Some(at);
        }
        self.head = done;
    }

    /// Merge sort by relinking.
    fn sort(&mut self) {
        self.head = self.sort_part(self.head, NODES);
    }

    /// Sorts the first `length` nodes from `head` on and ends the list behind them.
    fn sort_part(&mut self, head: Option<u8>, length: usize) -> Option<u8> {
        let first = head?;
        if length <= 1 {
            self.nodes[usize::from(first)].next = None;
            return head;
        }
        let half = length / 2;
        let middle = (0..half).fold(head, |at, _| at.and_then(|at| self.nodes[usize::from(at)].next));
        let left = self.sort_part(head, half);
        let right = self.sort_part(middle, length - half);
        self.merge(left, right)
    }

    fn merge(&mut self, mut left: Option<u8>, mut right: Option<u8>) -> Option<u8> {
        let (mut head, mut last): (Option<u8>, Option<u8>) = (None, None);
        loop {
            let taken = match (left, right) {
                (Some(a), Some(b)) if self.nodes[usize::from(a)].value > self.nodes[usize::from(b)].value => {
                    b
                }
                (Some(a), _) => a,
                (None, Some(b)) => b,
                (None, None) => return head,
            };
            let next = self.nodes[usize::from(taken)].next;
            if left == Some(taken) {
                left = next
            } else {
                right = next
            }
            match last {
                Some(last) => self.nodes[usize::from(last)].next = Some(taken),
                None => head = Some(taken),
            }
            last = Some(taken);
        }
    }
}

fn multiply(a: &[[i16; SIDE]; SIDE], b: &[[i16; SIDE]; SIDE], addend: i16) -> [[i32; SIDE]; SIDE] {
    std::array::from_fn(|row| {
        std::array::from_fn(|column| {
            let products = (0..SIDE).map(|inner| {
                i32::from(a[row][inner].wrapping_add(addend)).wrapping_mul(i32::from(b[inner][column]))
            });
            // The middle bits, so that shifts take part.
            products
                .fold(0, |sum: i32, product| sum.wrapping_add((product >> 2 & 0xff) * (product >> 5 & 0x7f)))
        })
    })
}

/// Where a reader of numbers stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scan {
    Start,
    Sign,
    Integer,
    Point,
    Exponent,
    ExponentSign,
    Scientific,
    Invalid,
}

/// Counts in which states the words of a text end, and how often the state changes. The seed spoils
/// some letters, so that each iteration takes other branches.
fn scan(text: &[u8], seed: u16) -> [u16; 9] {
    let mut counts = [0; 9];
    let mut state = Scan::Start;
    for (index, &letter) in text.iter().enumerate() {
        let letter = if index % 61 == usize::from(seed % 61) { letter ^ 1 } else { letter };
        if letter == b',' {
            counts[state as usize] += 1;
            state = Scan::Start;
            continue;
        }
        let next = match (state, letter) {
            (Scan::Start, b'+' | b'-') => Scan::Sign,
            (Scan::Start | Scan::Sign | Scan::Integer, b'0'..=b'9') => Scan::Integer,
            (Scan::Start | Scan::Sign | Scan::Integer, b'.') => Scan::Point,
            (Scan::Point, b'0'..=b'9') => Scan::Point,
            (Scan::Integer | Scan::Point, b'e' | b'E') => Scan::Exponent,
            (Scan::Exponent, b'+' | b'-') => Scan::ExponentSign,
            (Scan::ExponentSign | Scan::Scientific, b'0'..=b'9') => Scan::Scientific,
            _ => Scan::Invalid,
        };
        counts[8] += u16::from(next != state);
        state = next;
    }
    counts
}

/// CRC-16 with the reflected polynomial A001h, bit by bit.
fn crc16(crc: u16, value: u16) -> u16 {
    (0..16).fold(crc ^ value, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_reversed_without_losing_a_node() {
        let mut list = List::new(&mut Random::new(3));
        let mut expected: Vec<_> = list.values().collect();
        assert_eq!(expected.len(), NODES);
        assert_eq!(list.find(expected[5]), expected.iter().position(|&v| v == expected[5]).map(|p| p as u16));
        list.reverse();
        expected.reverse();
        assert_eq!(list.values().collect::<Vec<_>>(), expected);
        list.sort();
        expected.sort_unstable();
        assert_eq!(list.values().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn words_end_where_they_should() {
        let counts = scan(b"_12,+3.5,1e,2e+7,-,x,.5,", 0);
        // The seed spoils only the first letter.
        assert_eq!(counts[Scan::Invalid as usize], 2);
        assert_eq!(counts[Scan::Point as usize], 2);
        assert_eq!(counts[Scan::Exponent as usize], 1);
        assert_eq!(counts[Scan::Scientific as usize], 1);
        assert_eq!(counts[Scan::Sign as usize], 1);
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        // CRC-16/ARC of "123456789" less its last byte, two bytes at a time: compared with bit by bit.
        let by_bytes = b"12345678".iter().fold(0_u16, |crc, &byte| {
            (0..8).fold(
                crc ^ u16::from(byte),
                |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 },
            )
        });
        let by_words =
            b"12345678".chunks(2).fold(0, |crc, pair| crc16(crc, u16::from_le_bytes([pair[0], pair[1]])));
        assert_eq!(by_bytes, by_words);
    }
}
