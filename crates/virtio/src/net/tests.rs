use super::spec::*;
use super::*;
use crate::queue::RingError;
use crate::spec::feature as ring_feature;
use crate::test::{Bench, Buffer, Driver, Wire, WireEnd};
use memory::{Bytes, GuestAddress};

const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];
const AT: u64 = 0x10_0000;

fn bench(features: u64, frame_size_max: usize) -> (Bench, WireEnd) {
    let (wire, end) = Wire::new(frame_size_max);
    (Bench::new(&mut Net::new(MAC, Box::new(wire)), 16, features), end)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + len) as u8).collect()
}

fn bytes(bench: &Bench, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bench.ram.guest().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn frames_leave_without_their_header_however_they_are_cut() {
    let (mut bench, end) = bench(0, 1514);
    let sent = frame(1514);
    bench.ram.guest().write_slice(&sent, GuestAddress(AT + 12)).unwrap();
    for buffers in [
        &[Buffer::Out(AT, 1526)][..],
        &[Buffer::Out(AT, 12), Buffer::Out(AT + 12, 1514)],
        &[Buffer::Out(AT, 5), Buffer::Out(AT + 5, 100), Buffer::Out(AT + 105, 1421)],
    ] {
        let head = bench.rings[1].add(buffers);
        bench.settle();
        assert_eq!(bench.rings[1].take_used(), Some((head, 0)));
        assert_eq!(end.take(), std::slice::from_ref(&sent));
    }
}

#[test]
fn frames_of_impossible_length_are_lost() {
    let (mut bench, end) = bench(0, 1514);
    for len in [0, 11, 12, 25, 1527, 100_000] {
        let head = bench.rings[1].add(&[Buffer::Out(AT, len.max(1))]);
        bench.settle();
        assert_eq!(bench.rings[1].take_used(), Some((head, 0)), "{len}");
    }
    assert!(end.take().is_empty());
    bench.rings[1].add(&[Buffer::Out(AT, 26)]);
    bench.settle();
    assert_eq!(end.take().len(), 1);
    bench.rings[1].add(&[Buffer::Out(1 << 40, 100)]);
    bench.settle();
    assert_eq!(bench.recorder.fault(), Some((1, RingError::BadBuffer)));
}

#[test]
fn a_frame_fills_one_buffer_or_several_merged_ones() {
    for (features, sizes, expected) in [
        (0, &[1526][..], &[(0, 1526)][..]),
        (feature::MRG_RXBUF, &[4096], &[(0, 1526)]),
        (feature::MRG_RXBUF, &[1000, 500, 100], &[(0, 1000), (1, 500), (2, 26)]),
        (feature::MRG_RXBUF, &[10, 1516], &[(0, 10), (1, 1516)]),
    ] {
        let (mut bench, end) = bench(features, 1514);
        let heads: Vec<u16> = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| bench.rings[0].add(&[Buffer::In(AT + i as u64 * 0x1000, *size)]))
            .collect();
        let sent = frame(1514);
        end.send(&sent);
        bench.settle();
        let mut got = Vec::new();
        for (index, len) in expected {
            assert_eq!(bench.rings[0].take_used(), Some((heads[*index], *len)));
            got.extend(bytes(&bench, AT + *index as u64 * 0x1000, *len as usize));
        }
        assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, expected.len() as u8, 0]);
        assert_eq!(got[12..], sent);
    }
}

#[test]
fn frames_wait_until_the_guest_has_room() {
    for features in [0, ring_feature::RING_EVENT_IDX] {
        let (mut bench, end) = bench(features | feature::MRG_RXBUF, 1514);
        for _ in 0..3 {
            end.send(&frame(1000));
        }
        bench.settle();
        assert_eq!(end.waiting(), 2, "one is taken, the others stay outside");
        // Too little for a frame is left alone, and the device wants to hear of more.
        bench.rings[0].add(&[Buffer::In(AT, 500)]);
        bench.settle();
        assert_eq!(bench.rings[0].take_used(), None);
        let before = bench.rings[0].available_index();
        bench.rings[0].add(&[Buffer::In(AT + 0x1000, 600)]);
        assert!(bench.rings[0].wants_notification(before));
        bench.settle();
        assert!(bench.rings[0].take_used().is_some() && bench.rings[0].take_used().is_some());
        for _ in 0..2 {
            bench.rings[0].add(&[Buffer::In(AT, 2000)]);
        }
        bench.settle();
        assert_eq!(std::iter::from_fn(|| bench.rings[0].take_used()).count(), 2);
        assert_eq!(end.waiting(), 0);
    }
}

#[test]
fn a_frame_that_never_fits_is_lost_and_the_next_is_not() {
    // Without merging one buffer must do; with it, all that the ring can hold.
    for (features, count, size) in [(0, 1, 100), (feature::MRG_RXBUF, 16, 20)] {
        let (mut bench, end) = bench(features, 1514);
        for _ in 0..count {
            bench.rings[0].add(&[Buffer::In(AT, size)]);
        }
        end.send(&frame(1514));
        end.send(&frame(60));
        bench.settle();
        assert_eq!(end.waiting(), 0);
        assert!(bench.rings[0].take_used().is_some(), "{features:#x}");
    }
}

#[test]
fn a_pulled_cable_loses_frames_and_tells_the_driver() {
    let (wire, end) = Wire::new(1514);
    let mut net = Net::new(MAC, Box::new(wire));
    let link = net.link();
    let mut bench = Bench::new(&mut net, 16, 0);
    link.set(false);
    link.set(false);
    assert_eq!(bench.recorder.config_changes(), 1);
    let mut status = [9; 2];
    net.config_read(config::STATUS as u64, &mut status);
    assert_eq!(status, [0, 0]);
    bench.rings[0].add(&[Buffer::In(AT, 2000)]);
    bench.rings[1].add(&[Buffer::Out(AT, 100)]);
    end.send(&frame(100));
    bench.settle();
    assert!(end.take().is_empty() && bench.rings[0].take_used().is_none());
    link.set(true);
    end.send(&frame(100));
    bench.settle();
    assert!(bench.rings[0].take_used().is_some());
}

#[test]
fn a_copy_with_another_address_tells_its_driver() {
    let other = [2, 0, 0, 9, 9, 9];
    for (mac, changes) in [(MAC, 0), (other, 1)] {
        let saved = Net::new(MAC, Box::new(Wire::new(1514).0)).save();
        let mut net = Net::new(mac, Box::new(Wire::new(1514).0));
        net.restore(saved).unwrap();
        let bench = Bench::new(&mut net, 16, 0);
        assert_eq!(bench.recorder.config_changes(), changes);
        let mut shown = [0; 6];
        net.config_read(config::MAC as u64, &mut shown);
        assert_eq!(shown, mac);
    }
}

#[test]
fn the_configuration_has_address_and_mtu() {
    for (frame_size_max, mtu) in [(1514, 1500), (9014, 9000), (0, 68), (1 << 20, 65535)] {
        let (wire, _) = Wire::new(frame_size_max);
        let driver = Driver::new(Box::new(Net::new(MAC, Box::new(wire))));
        assert_eq!(driver.config(0, 4) | driver.config(4, 2) << 32, 0x0302_0100_0002);
        assert_eq!(driver.config(config::STATUS as u64, 2), 1);
        assert_eq!(driver.config(config::MTU as u64, 2), mtu);
    }
}

#[test]
fn frames_pass_both_ways_through_threads_and_pauses() {
    let (wire, end) = Wire::new(1514);
    let mut driver = Driver::new(Box::new(Net::new(MAC, Box::new(wire))));
    driver.start(64, u64::MAX);
    let mut sent = 0;
    for round in 0..200usize {
        let before = driver.rings[0].available_index();
        for i in 0..4u64 {
            driver.rings[0].add(&[Buffer::In(AT + i * 0x1000, 2048)]);
        }
        driver.notify_since(0, before);
        for i in 0..4 {
            end.send(&frame(60 + round + i));
        }
        let before = driver.rings[1].available_index();
        for i in 0..4 {
            driver.rings[1].add(&[Buffer::Out(0x20_0000, 12 + 60 + i)]);
        }
        driver.notify_since(1, before);
        if round % 50 == 7 {
            driver.function.pause();
            driver.function.resume();
        }
        for i in 0..4 {
            assert_eq!(driver.wait_used(0).1 as usize, 12 + 60 + round + i);
            driver.wait_used(1);
        }
        sent += end.take().len();
    }
    assert_eq!(sent, 800);
    driver.reset();
    driver.start(8, 0);
    driver.rings[1].add(&[Buffer::Out(0x20_0000, 100)]);
    driver.notify(1);
    driver.wait_used(1);
    assert_eq!(end.take().len(), 1);
}

#[test]
fn offloads_that_were_agreed_upon_are_done_and_others_are_not() {
    // A UDP packet whose checksum is left to the card: the field holds the pseudo header's sum.
    let mut packet = vec![2; 12];
    packet.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0x62, 0xbd, 10, 0, 2, 15, 10, 0, 2, 2]);
    packet.extend([0, 53, 0, 53, 0, 12, 0x18, 0x2e, b'a', b'b', b'c', b'd']);
    let mut header = [0; 12];
    header[0] = HDR_NEEDS_CSUM;
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&6u16.to_le_bytes());
    for (features, done) in [(feature::CSUM, true), (0, false)] {
        let (mut bench, end) = bench(features, 1514);
        bench.ram.guest().write_slice(&[&header[..], &packet].concat(), GuestAddress(AT)).unwrap();
        bench.rings[1].add(&[Buffer::Out(AT, 12 + packet.len() as u32)]);
        bench.settle();
        let sent = end.take().remove(0);
        assert_eq!(sent != packet, done);
        assert_eq!(offload::vouch(&sent) != 0, done);
        if !done {
            continue;
        }
        // The same frame comes in: with right checksums, and with a wrong one.
        for (features, damage, flags) in
            [(feature::GUEST_CSUM, 0, HDR_DATA_VALID), (feature::GUEST_CSUM, 1, 0), (0, 0, 0)]
        {
            let (mut bench, end) = self::bench(features, 1514);
            let mut frame = sent.clone();
            frame[45] ^= damage;
            end.send(&frame);
            bench.rings[0].add(&[Buffer::In(AT, 2000)]);
            bench.settle();
            assert_eq!(bytes(&bench, AT, 1), [flags]);
        }
    }
}

#[test]
fn a_segment_longer_than_a_frame_needs_agreement() {
    for (features, frames) in [(feature::CSUM | feature::HOST_TSO4, 3), (feature::CSUM, 0), (0, 0)] {
        let (mut bench, end) = bench(features, 1514);
        let mut header = [0; 12];
        header[..2].copy_from_slice(&[HDR_NEEDS_CSUM, GSO_TCPV4]);
        header[4..6].copy_from_slice(&1000u16.to_le_bytes());
        header[6..8].copy_from_slice(&34u16.to_le_bytes());
        header[8..10].copy_from_slice(&16u16.to_le_bytes());
        let mut packet = vec![2; 12];
        packet.extend([8, 0, 0x45, 0, 11, 0xe0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        packet.extend([0, 53, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
        packet.extend([7; 3000]);
        bench.ram.guest().write_slice(&[&header[..], &packet].concat(), GuestAddress(AT)).unwrap();
        bench.rings[1].add(&[Buffer::Out(AT, 12 + packet.len() as u32)]);
        bench.settle();
        assert_eq!(end.take().len(), frames, "{features:#x}");
        assert!(bench.rings[1].take_used().is_some());
    }
}

/// Saved with receive buffers half used up and a frame that has not left: the rest is used, and it leaves once.
#[test]
fn a_card_saved_at_work_goes_on_with_the_buffers_that_are_left() {
    let (wire, end) = Wire::new(1514);
    let mut driver = Driver::new(Box::new(Net::new(MAC, Box::new(wire))));
    driver.start(16, u64::MAX);
    let heads: Vec<u16> = (0..3).map(|i| driver.rings[0].add(&[Buffer::In(AT + i * 0x1000, 2048)])).collect();
    driver.notify(0);
    end.send(&frame(70));
    assert_eq!(driver.wait_used(0), (heads[0], 12 + 70));
    driver.function.pause();
    driver.ram.guest().write_slice(&frame(80), GuestAddress(0x20_0000 + 12)).unwrap();
    let leaving = driver.rings[1].add(&[Buffer::Out(0x20_0000, 12 + 80)]);
    driver.notify(1);
    // What reaches the old card now is lost, as on a wire that was pulled.
    end.send(&frame(90));
    let (wire, new_end) = Wire::new(1514);
    let mut driver = driver.moved(Box::new(Net::new(MAC, Box::new(wire))));
    assert_eq!(driver.wait_used(1).0, leaving);
    assert_eq!((new_end.take(), end.take()), (vec![frame(80)], vec![]));
    for (i, head) in heads.iter().enumerate().skip(1) {
        new_end.send(&frame(100 + i));
        assert_eq!(driver.wait_used(0), (*head, 12 + 100 + i as u32));
    }
}

#[test]
fn frames_wait_at_a_limit_in_each_direction_until_it_is_lifted() {
    use device::limit::{Limits, Rate};
    // A frame of this length takes more than a minute.
    let slow = Limits { bytes: Some(Rate { per_second: 10, burst: 0 }), operations: None };
    let (wire, end) = Wire::new(1514);
    let mut net = Net::new(MAC, Box::new(wire));
    let [sending, receiving] = net.limiters();
    let mut bench = Bench::new(&mut net, 16, 0);
    sending.set(slow);
    receiving.set(slow);
    for _ in 0..5 {
        end.send(&frame(1000));
        bench.rings[0].add(&[Buffer::In(AT + 0x1_0000, 1526)]);
        bench.rings[1].add(&[Buffer::Out(AT, 1012)]);
    }
    bench.settle();
    assert_eq!((end.take().len(), end.waiting()), (1, 4));
    sending.set(Limits::default());
    bench.settle();
    assert_eq!((end.take().len(), end.waiting()), (4, 4));
    receiving.set(Limits::default());
    bench.settle();
    assert_eq!(end.waiting(), 0);
    assert_eq!(std::iter::from_fn(|| bench.rings[0].take_used()).count(), 5);
}
