use super::*;
use crate::queue::RingError;
use crate::test::{Bench, Buffer, Driver};
use memory::{Bytes, GuestAddress};
use std::sync::mpsc::{Receiver, Sender, channel};

const AT: u64 = 0x10_0000;

/// Collects what a console writes.
struct Screen(Sender<Vec<u8>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn console() -> (Console, Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    (Console::new(Box::new(Screen(sender))).unwrap(), receiver)
}

fn shown(screen: &Receiver<Vec<u8>>) -> Vec<u8> {
    screen.try_iter().flatten().collect()
}

#[test]
fn output_appears_in_order() {
    let (mut console, screen) = console();
    let mut bench = Bench::new(&mut console, 16, 0);
    let text: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    bench.ram.guest().write_slice(&text, GuestAddress(AT)).unwrap();
    bench.rings[1].add(&[Buffer::Out(AT, 7), Buffer::Out(AT + 7, 5000)]);
    bench.rings[1].add(&[Buffer::Out(AT + 5007, 4993)]);
    bench.settle();
    assert_eq!(shown(&screen), text);
    assert_eq!(bench.rings[1].take_used().map(|(_, len)| len), Some(0));
    assert_eq!(bench.recorder.take_used(), [1]);
}

#[test]
fn input_waits_for_buffers_and_fills_them() {
    let (mut console, _screen) = console();
    let input = console.input();
    let mut bench = Bench::new(&mut console, 16, 0);
    assert_eq!(input.receive(b"hello, guest"), 12);
    bench.settle();
    bench.rings[0].add(&[Buffer::In(AT, 5)]);
    bench.rings[0].add(&[Buffer::In(AT + 0x1000, 100)]);
    bench.settle();
    assert_eq!(bench.rings[0].take_used().map(|(_, len)| len), Some(5));
    assert_eq!(bench.rings[0].take_used().map(|(_, len)| len), Some(7));
    let mut bytes = [0; 7];
    bench.ram.guest().read_slice(&mut bytes, GuestAddress(AT + 0x1000)).unwrap();
    assert_eq!(&bytes, b", guest");
}

#[test]
fn input_is_bounded() {
    let (console, _screen) = console();
    let input = console.input();
    assert_eq!(input.room(), INPUT_MAX);
    assert_eq!(input.receive(&vec![1; INPUT_MAX - 10]), INPUT_MAX - 10);
    assert_eq!(input.receive(&[2; 100]), 10);
    assert_eq!((input.room(), input.receive(&[3])), (0, 0));
}

#[test]
fn hostile_chains_cost_bounded_work() {
    let (mut console, screen) = console();
    let mut bench = Bench::new(&mut console, 16, 0);
    // A gigabyte in a chain: cut; buffers with no room: used with nothing.
    let spans = [Buffer::Out(AT, 1 << 20); 3];
    bench.rings[1].add(&spans);
    console.input().receive(b"x");
    bench.rings[0].add(&[Buffer::Out(AT, 4)]);
    bench.rings[0].add(&[Buffer::In(AT, 4)]);
    bench.settle();
    assert_eq!(shown(&screen).len(), 1 << 20);
    assert_eq!(bench.rings[0].take_used().map(|(_, len)| len), Some(0));
    assert_eq!(bench.rings[0].take_used().map(|(_, len)| len), Some(1));
    bench.rings[1].add(&[Buffer::Out(1 << 40, 4)]);
    bench.settle();
    assert_eq!(bench.recorder.fault(), Some((1, RingError::BadBuffer)));
}

#[test]
fn configuration_has_the_size_and_an_emergency_exit() {
    let (console, screen) = console();
    let input = console.input();
    let mut driver = Driver::new(Box::new(console));
    assert_eq!((driver.config(0, 2), driver.config(2, 2), driver.config(4, 4)), (80, 25, 1));
    driver.config_write(EMERG_WR, &(b'!' as u32).to_le_bytes());
    assert_eq!(shown(&screen), b"!");
    driver.start(16, u64::MAX);
    let generation = driver.common_read(crate::spec::pci::common::CONFIG_GENERATION, 1);
    input.resize(132, 43);
    assert_eq!((driver.config(0, 2), driver.config(2, 2)), (132, 43));
    assert_ne!(driver.common_read(crate::spec::pci::common::CONFIG_GENERATION, 1), generation);
    assert_eq!(driver.interrupts.messages().len(), 1);
}

#[test]
fn text_passes_both_ways_through_threads() {
    let (console, screen) = console();
    let input = console.input();
    let mut driver = Driver::new(Box::new(console));
    driver.start(16, u64::MAX);
    for round in 0..200u32 {
        driver.ram.guest().write_slice(&round.to_le_bytes(), GuestAddress(AT)).unwrap();
        let before = driver.rings[1].available_index();
        driver.rings[1].add(&[Buffer::Out(AT, 4)]);
        driver.notify_since(1, before);
        driver.wait_used(1);
        assert_eq!(screen.recv().unwrap(), round.to_le_bytes());
        let before = driver.rings[0].available_index();
        driver.rings[0].add(&[Buffer::In(AT, 16)]);
        driver.notify_since(0, before);
        input.receive(&round.to_le_bytes());
        assert_eq!(driver.wait_used(0).1, 4);
        assert_eq!(driver.ram.load::<u32>(AT), Some(round));
    }
}

#[test]
fn unread_input_is_saved() {
    let (mut first, _screen) = console();
    first.input().receive(b"typed ahead");
    first.input().resize(100, 40);
    let saved = first.save();
    let (mut second, _screen) = console();
    second.restore(saved.clone()).unwrap();
    assert_eq!(second.save(), saved);
    assert_eq!(second.input().room(), INPUT_MAX - 11);
    let too_much = ConsoleSaved { input: vec![0; INPUT_MAX + 1], columns: 0, rows: 0 };
    assert!(first.restore(DeviceSaved::Console(too_much)).is_err());
    assert!(first.restore(DeviceSaved::Rng).is_err());
}

/// Saved with input that the guest has no buffer for and output that it has just written.
#[test]
fn a_console_saved_at_work_loses_and_repeats_nothing() {
    let (console, _screen) = console();
    console.input().receive(b"typed ahead");
    let mut driver = Driver::new(Box::new(console));
    driver.start(16, u64::MAX);
    driver.rings[0].add(&[Buffer::In(AT, 6)]);
    driver.notify(0);
    assert_eq!(driver.wait_used(0).1, 6);
    driver.function.pause();
    driver.ram.guest().write_slice(b"said", GuestAddress(AT + 0x1000)).unwrap();
    driver.rings[1].add(&[Buffer::Out(AT + 0x1000, 4)]);
    driver.notify(1);
    let (console, screen) = self::console();
    let mut driver = driver.moved(Box::new(console));
    driver.wait_used(1);
    assert_eq!(screen.recv().unwrap(), b"said");
    let before = driver.rings[0].available_index();
    driver.rings[0].add(&[Buffer::In(AT, 16)]);
    driver.notify_since(0, before);
    assert_eq!(driver.wait_used(0).1, 5);
    let mut rest = [0; 5];
    driver.ram.guest().read_slice(&mut rest, GuestAddress(AT)).unwrap();
    assert_eq!(&rest, b"ahead");
}
