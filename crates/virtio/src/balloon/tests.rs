use super::*;
use crate::spec::feature as ring_feature;
use crate::test::{Bench, Buffer};
use memory::{Bytes, GuestAddress};

const NUMBERS: u64 = 0x10_0000;
const PAGES: u64 = 0x20_0000;

struct Guest {
    bench: Bench,
    balloon: Balloon,
}

fn guest() -> Guest {
    let mut balloon = Balloon::new();
    let features = balloon.features() | ring_feature::RING_EVENT_IDX;
    let bench = Bench::new(&mut balloon, 16, features);
    bench.ram.guest().write_slice(&[0xaa; 1 << 20], GuestAddress(PAGES)).unwrap();
    Guest { bench, balloon }
}

impl Guest {
    fn byte(&self, gpa: u64) -> u8 {
        self.bench.ram.load(gpa).unwrap()
    }

    fn give(&mut self, queue: usize, buffer: Buffer) {
        self.bench.rings[queue].add(&[buffer]);
        self.bench.settle();
        assert!(self.bench.rings[queue].take_used().is_some());
    }
}

#[test]
fn pages_that_are_given_away_are_gone_and_others_are_not() {
    let mut guest = guest();
    guest.balloon.control().set_target(3 * PAGE + 1);
    assert_eq!(guest.bench.recorder.config_changes(), 1);
    let mut pages = [0; 4];
    guest.balloon.config_read(0, &mut pages);
    assert_eq!(u32::from_le_bytes(pages), 3);
    // Descending, with a gap, and with numbers that are no memory.
    let first = PAGES / PAGE;
    let numbers: Vec<u8> = [first + 3, first + 2, first, u64::from(u32::MAX), 1 << 20]
        .iter()
        .flat_map(|n| (*n as u32).to_le_bytes())
        .collect();
    guest.bench.ram.guest().write_slice(&numbers, GuestAddress(NUMBERS)).unwrap();
    guest.give(0, Buffer::Out(NUMBERS, numbers.len() as u32));
    let bytes: Vec<u8> = (0..5).map(|page| guest.byte(PAGES + page * PAGE)).collect();
    assert_eq!(bytes, [0, 0xaa, 0, 0, 0xaa]);
    guest.balloon.config_write(4, &3u32.to_le_bytes());
    let status = guest.balloon.control().status();
    assert_eq!((status.active, status.target, status.actual), (true, 3 * PAGE, 3 * PAGE));
    guest.give(1, Buffer::Out(NUMBERS, 4));
    assert!(guest.bench.recorder.fault().is_none());
}

#[test]
fn a_list_is_read_so_far_and_no_further() {
    let mut guest = guest();
    let page = (PAGES / PAGE) as u32;
    let mut numbers = vec![0xff; work::LIST_MAX as usize];
    numbers[..4].copy_from_slice(&page.to_le_bytes());
    numbers.extend((page + 1).to_le_bytes());
    guest.bench.ram.guest().write_slice(&numbers, GuestAddress(NUMBERS)).unwrap();
    guest.give(0, Buffer::Out(NUMBERS, numbers.len() as u32));
    assert_eq!((guest.byte(PAGES), guest.byte(PAGES + PAGE)), (0, 0xaa));
}

#[test]
fn free_pages_that_are_reported_go_back_to_the_host() {
    let mut guest = guest();
    guest.give(3, Buffer::In(PAGES + PAGE, 2 * PAGE as u32));
    // Less than a page, and what is no memory.
    guest.give(3, Buffer::In(PAGES + 5 * PAGE + 1, PAGE as u32));
    guest.give(3, Buffer::In(1 << 40, 1 << 20));
    let bytes: Vec<u8> = (0..7).map(|page| guest.byte(PAGES + page * PAGE)).collect();
    assert_eq!(bytes, [0xaa, 0, 0, 0xaa, 0xaa, 0xaa, 0xaa]);
    assert_eq!(guest.balloon.control().status().reported, 2 * PAGE);
}

#[test]
fn figures_are_kept_and_asked_for() {
    let mut guest = guest();
    let stats: Vec<u8> = [(4u16, 1000u64), (5, 2000), (6, u64::MAX), (99, 1)]
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect();
    guest.bench.ram.guest().write_slice(&stats, GuestAddress(NUMBERS)).unwrap();
    guest.bench.rings[2].add(&[Buffer::Out(NUMBERS, stats.len() as u32)]);
    guest.bench.settle();
    // The buffer stays with the device until somebody wants to know.
    assert!(guest.bench.rings[2].take_used().is_none());
    let status = guest.balloon.control().status();
    assert_eq!(status.stats, BTreeMap::from([("free_bytes", 1000), ("total_bytes", 2000)]));
    guest.bench.settle();
    assert!(guest.bench.rings[2].take_used().is_some());
}

#[test]
fn the_state_goes_with_a_snapshot() {
    let mut balloon = Balloon::new();
    balloon.control().set_target(1 << 20);
    balloon.config_write(4, &200u32.to_le_bytes());
    let saved = balloon.save();
    let mut other = Balloon::new();
    other.restore(saved).unwrap();
    let status = other.control().status();
    assert_eq!((status.active, status.target, status.actual), (false, 1 << 20, 200 * PAGE));
    assert!(other.restore(DeviceSaved::Rng).is_err());
}
