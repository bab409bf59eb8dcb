use super::*;
use crate::test::{Bench, Buffer};
use memory::{Bytes, GuestAddress};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const AT: u64 = 0x10_0000;

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("arnia-serial-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Place(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bytes(bench: &Bench, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bench.ram.guest().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn say(bench: &mut Bench, id: u32, event: u16, value: u16) {
    let message = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
    bench.ram.guest().write_slice(&message, GuestAddress(AT)).unwrap();
    bench.rings[queue::CONTROL_OUT].add(&[Buffer::Out(AT, 8)]);
    bench.settle();
    while bench.rings[queue::CONTROL_OUT].take_used().is_some() {}
}

/// What the device says next.
fn said(bench: &mut Bench) -> Option<(u32, u16, u16, String)> {
    bench.rings[queue::CONTROL_IN].add(&[Buffer::In(AT + 0x1000, 100)]);
    bench.settle();
    let (_, len) = bench.rings[queue::CONTROL_IN].take_used()?;
    let message = bytes(bench, AT + 0x1000, len as usize);
    let number = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
    let name = String::from_utf8(message[8..].to_vec()).unwrap();
    Some((u32::from(number(0)), number(4), number(6), name))
}

#[test]
fn the_driver_finds_the_port_by_its_name() {
    let place = Place::new("name");
    let mut port = SerialPort::new(QEMU_AGENT, &place.0).unwrap();
    let mut count = [0; 4];
    port.config_read(4, &mut count);
    assert_eq!(u32::from_le_bytes(count), 2);
    let mut bench = Bench::new(&mut port, 16, feature::MULTIPORT);
    say(&mut bench, 0, DEVICE_READY, 1);
    assert_eq!(said(&mut bench), Some((1, DEVICE_ADD, 1, String::new())));
    say(&mut bench, 1, PORT_READY, 1);
    assert_eq!(said(&mut bench), Some((1, PORT_NAME, 1, QEMU_AGENT.into())));
    assert_eq!(said(&mut bench), Some((1, PORT_OPEN, 1, String::new())));
    // Of a port that is not there, and what makes no sense, nothing comes.
    say(&mut bench, 0, PORT_READY, 1);
    say(&mut bench, 1, 999, 1);
    bench.rings[queue::CONTROL_OUT].add(&[Buffer::Out(AT, 3)]);
    bench.settle();
    assert_eq!(said(&mut bench), None);
}

#[test]
fn bytes_go_both_ways_and_one_client_is_served_after_the_other() {
    let place = Place::new("bytes");
    let mut port = SerialPort::new(QEMU_AGENT, &place.0).unwrap();
    let mut bench = Bench::new(&mut port, 16, feature::MULTIPORT);
    let send = |bench: &mut Bench, text: &[u8]| {
        bench.ram.guest().write_slice(text, GuestAddress(AT)).unwrap();
        bench.rings[queue::OUT].add(&[Buffer::Out(AT, text.len() as u32)]);
        bench.settle();
        assert!(bench.rings[queue::OUT].take_used().is_some());
    };
    send(&mut bench, b"nobody hears this");
    let mut first = UnixStream::connect(&place.0).unwrap();
    first.write_all(b"hello").unwrap();
    let mut second = UnixStream::connect(&place.0).unwrap();
    second.write_all(b"later").unwrap();
    bench.rings[queue::IN].add(&[Buffer::In(AT + 0x2000, 100)]);
    bench.settle();
    assert_eq!(bench.rings[queue::IN].take_used().map(|(_, len)| len), Some(5));
    assert_eq!(bytes(&bench, AT + 0x2000, 5), b"hello");
    send(&mut bench, b"answer");
    let mut answer = [0; 6];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    drop(first);
    bench.rings[queue::IN].add(&[Buffer::In(AT + 0x3000, 100)]);
    bench.settle();
    bench.settle();
    assert_eq!(bench.rings[queue::IN].take_used().map(|(_, len)| len), Some(5));
    assert_eq!(bytes(&bench, AT + 0x3000, 5), b"later");
}

#[test]
fn a_guest_that_only_talks_fills_no_memory() {
    let place = Place::new("flood");
    let mut port = SerialPort::new(QEMU_AGENT, &place.0).unwrap();
    let mut bench = Bench::new(&mut port, 16, feature::MULTIPORT);
    let _client = UnixStream::connect(&place.0).unwrap();
    bench.settle();
    // The client does not read: after what sockets and we hold, nothing more is taken.
    let mut taken = 0;
    for _ in 0..100 {
        if bench.rings[queue::OUT].free_count() == 0 {
            break;
        }
        bench.rings[queue::OUT].add(&[Buffer::Out(AT, 100_000)]);
        bench.settle();
        while bench.rings[queue::OUT].take_used().is_some() {
            taken += 1;
        }
    }
    assert!(taken < 20, "{taken} of 100 kB each were taken");
    for _ in 0..100 {
        say(&mut bench, 0, DEVICE_READY, 1);
    }
    let mut answers = 0;
    while said(&mut bench).is_some() {
        answers += 1;
    }
    assert!(answers <= CONTROLS_MAX, "{answers}");
}
