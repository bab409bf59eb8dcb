//! The devices together, as vmm wires them.

use super::*;
use crate::fuzzing::machine::Machine;
use crate::fuzzing::tests::Random;
use crate::sync::lock;
use clock::Clock;
use device::Msi;
use memory::Ram;
use serde_json::Value;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What reaches the outside.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Msi(Msi),
    Intr(bool),
    Event(PlatformEvent),
}

struct Sent(Mutex<Sender<Heard>>);
impl MsiSink for Sent {
    fn send_msi(&self, msi: Msi) {
        let _ = lock(&self.0).send(Heard::Msi(msi));
    }
}

struct Rig {
    platform: Platform,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    heard: Receiver<Heard>,
    clock: Arc<Clock>,
    _ram: Ram,
}

const PATIENCE: Duration = Duration::from_secs(5);

fn rig() -> Rig {
    let clock = Arc::new(Clock::new());
    let (pio, mmio, ram) = (Arc::new(Bus::new()), Arc::new(Bus::new()), Ram::new(64 << 20).unwrap());
    let (tx, heard) = channel();
    let sender = || Mutex::new(tx.clone());
    let (intr, events) = (sender(), sender());
    let platform = Platform::new(PlatformConfig {
        timers: Timers::new(clock.clone()).unwrap(),
        pio: pio.clone(),
        mmio: mmio.clone(),
        memory: ram.guest().clone(),
        msi: Arc::new(Sent(sender())),
        intr: Box::new(move |level| drop(lock(&intr).send(Heard::Intr(level)))),
        events: Arc::new(move |event| drop(lock(&events).send(Heard::Event(event)))),
        serial: vec![Box::new(std::io::sink())],
        debug_console: None,
        debug_exit: true,
        windows: Windows::above_ram(64 << 20, 1 << 36),
        display: None,
        firmware: Some(FirmwareDevices {
            flash: Some(FlashConfig { start: 0xffc0_0000, data: vec![0xff; 0x4000], keep: None }),
        }),
    })
    .unwrap();
    Rig { platform, pio, mmio, heard, clock, _ram: ram }
}

impl Rig {
    fn out(&self, port: u64, data: &[u8]) {
        assert!(self.pio.write(port, data), "no device at port {port:#x}");
    }

    /// Lets an I/O APIC pin send a vector to APIC 0.
    fn unmask(&self, pin: u32, entry: u32) {
        for (offset, value) in [(0, 0x10 + 2 * pin), (0x10, entry)] {
            assert!(self.mmio.write(0xfec0_0000 + offset, &value.to_le_bytes()));
        }
    }

    fn expect(&self, heard: Heard) {
        assert_eq!(self.heard.recv_timeout(PATIENCE), Ok(heard));
    }
}

fn msi(data: u32) -> Heard {
    Heard::Msi(Msi { address: 0xfee0_0000, data })
}

#[test]
fn the_interval_timer_interrupts_by_pin_2_and_by_the_pic() {
    let rig = rig();
    rig.unmask(2, 0x31);
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x43, 0x30)] {
        rig.out(port, &[value]);
    }
    rig.out(0x40, &[100]);
    rig.out(0x40, &[0]);
    // The PIC is told first.
    rig.expect(Heard::Intr(true));
    rig.expect(msi(0x31));
    assert_eq!(rig.platform.pic.acknowledge(), 0x20);
    rig.expect(Heard::Intr(false));
}

#[test]
fn the_power_button_asks_by_sci_and_s5_answers() {
    let rig = rig();
    rig.unmask(9, 0x8039);
    rig.out(0x602, &[0, 1]);
    rig.platform.pm.press_power_button();
    rig.expect(msi(0x8039));
    rig.platform.ioapic.eoi(0x39);
    rig.expect(msi(0x8039));
    rig.out(0x600, &[0, 1]);
    rig.platform.ioapic.eoi(0x39);
    rig.out(0x604, &0x3401u16.to_le_bytes());
    rig.expect(Heard::Event(PlatformEvent::PowerOff));
}

#[test]
fn every_way_to_reset_or_exit_is_heard() {
    let rig = rig();
    for (port, value, event) in [
        (0xcf9, 0x06, PlatformEvent::Reset),
        (0x64, 0xfe, PlatformEvent::Reset),
        (0x92, 0x01, PlatformEvent::Reset),
        (0xf4, 0x2a, PlatformEvent::DebugExit(0x2a)),
    ] {
        rig.out(port, &[value]);
        rig.expect(Heard::Event(event));
    }
    assert!(rig.heard.try_recv().is_err());
}

#[test]
fn serial_input_interrupts_and_firmware_learns_the_memory_size() {
    let rig = rig();
    rig.unmask(4, 0x44);
    rig.out(0x3f9, &[1]);
    assert_eq!(rig.platform.serial[0].receive(b"x"), 1);
    rig.expect(msi(0x44));
    let mut data = [0; 1];
    rig.out(0x70, &[0x34]);
    rig.pio.read(0x71, &mut data);
    assert_eq!(data[0] as u64, (48 << 20 >> 16) & 0xff);
    assert!(!rig.pio.write(0x2f8, &[0]), "no COM2");
}

/// The saved form as a tree, after a trip through text.
fn saved(platform: &Platform) -> Value {
    let text = serde_json::to_string(&platform.save()).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_restored_platform_is_the_saved_one() {
    let rig = rig();
    rig.clock.pause();
    for (port, bytes) in [
        (0x43, &[0x34][..]),
        (0x40, &[0x10]),
        (0x40, &[0x27]),
        (0x20, &[0x11, 0x30]),
        (0x21, &[0x04]),
        (0x21, &[0x01]),
        (0x70, &[0x0b, 0x42]),
        (0x3fb, &[0x03]),
        (0x602, &[0x20, 0x03]),
        (0xcf8, &[0, 0, 0, 0x80]),
        (0x64, &[0x60]),
    ] {
        rig.out(port, bytes);
    }
    rig.unmask(4, 0x44);
    let before = saved(&rig.platform);
    let other = self::rig();
    other.clock.pause();
    assert_ne!(saved(&other.platform), before);
    other.platform.restore(serde_json::from_value(before.clone()).unwrap()).unwrap();
    let mut after = saved(&other.platform);
    // Times differ: each machine has its own clock. What is bound to them moved along.
    let now = |value: &Value| value["pit"]["now"].as_i64().unwrap();
    let start = |value: &Value| value["pit"]["channels"][0]["run"]["Since"].as_i64().unwrap();
    assert_eq!(start(&after) - now(&after), start(&before) - now(&before));
    after["pit"] = before["pit"].clone();
    assert_eq!(after, before);
    other.platform.reset();
    assert_ne!(saved(&other.platform), before);
}

/// Whatever the guest was in the middle of, it goes on in another machine as in its own: what it reads next.
#[test]
fn half_read_registers_are_read_on() {
    let read = |rig: &Rig, port: u16| {
        let mut byte = [0];
        rig.pio.read(port.into(), &mut byte);
        byte[0]
    };
    // Port to read next, what was done before, what is read.
    type Case = (&'static str, &'static [(u16, u8)], &'static [u16], u16, u8);
    let cases: [Case; 7] = [
        (
            "PIT: the high byte of a latched count",
            &[(0x43, 0x30), (0x40, 0x34), (0x40, 0x12), (0x43, 0)],
            &[0x40],
            0x40,
            0x12,
        ),
        (
            "PIT: the high byte is still to be written",
            &[(0x43, 0xb0), (0x42, 0x78), (0x43, 0xe8)],
            &[],
            0x42,
            0xf0,
        ),
        ("RTC: the index", &[(0x70, 0x35), (0x71, 0x5a), (0x70, 0x35)], &[], 0x71, 0x5a),
        ("fw_cfg: the offset", &[(0x510, 0), (0x511, 0)], &[0x511, 0x511], 0x511, b'M'),
        ("PIC: which register is read", &[(0x20, 0x0b)], &[], 0x20, 0),
        ("i8042: its own memory", &[(0x64, 0x65), (0x60, 0x77), (0x64, 0x25)], &[], 0x60, 0x77),
        ("serial: the divisor latch is open", &[(0x3fb, 0x83), (0x3f8, 0x0c), (0x3f9, 1)], &[], 0x3f9, 1),
    ];
    for (what, writes, reads, port, expected) in cases {
        let rig = rig();
        rig.clock.pause();
        for &(port, byte) in writes {
            // The selector of fw_cfg is a word.
            let bytes = [byte, 0];
            rig.out(port.into(), &bytes[..if port == 0x510 { 2 } else { 1 }]);
        }
        for &port in reads {
            read(&rig, port);
        }
        let other = self::rig();
        other.clock.pause();
        other.platform.restore(serde_json::from_value(saved(&rig.platform)).unwrap()).unwrap();
        let (here, there) = (read(&rig, port), read(&other, port));
        assert_eq!(there, here, "{what}");
        if !what.starts_with("PIT: the high byte is") && !what.starts_with("PIC") {
            assert_eq!(there, expected, "{what}");
        }
    }
}

#[test]
fn restore_makes_no_edge_of_a_line_that_was_high() {
    let rig = rig();
    rig.unmask(4, 0x44);
    rig.out(0x3f9, &[1]);
    rig.platform.serial[0].receive(b"x");
    let before = rig.platform.save();
    let other = self::rig();
    other.platform.restore(before).unwrap();
    assert!(other.heard.try_recv().is_err(), "the message was sent before the machine was saved");
    // The guest reads the byte, and the next one is an edge again.
    let mut byte = [0];
    other.pio.read(0x3f8, &mut byte);
    assert_eq!(byte, *b"x");
    other.platform.serial[0].receive(b"y");
    other.expect(msi(0x44));
}

/// What is due when time stops goes to the processors, which are saved with it; nothing is due twice.
#[test]
fn an_interrupt_that_is_due_at_a_pause_is_raised_before_anything_is_saved() {
    let rig = rig();
    rig.clock.pause();
    rig.unmask(2, 0x31);
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0x10)] {
        rig.out(port, &[value]);
    }
    rig.clock.pass(Duration::from_millis(5).as_nanos() as u64);
    assert!(rig.heard.try_recv().is_err(), "timers stand still with the clock");
    rig.platform.settle();
    rig.expect(msi(0x31));
    let saved = saved(&rig.platform);
    let other = self::rig();
    other.clock.pause();
    other.platform.restore(serde_json::from_value(saved).unwrap()).unwrap();
    rig.platform.settle();
    other.platform.settle();
    for heard in [&rig.heard, &other.heard] {
        assert!(heard.try_recv().is_err(), "once only");
    }
}

/// A level that was there from power-on is no interrupt: neither in a new machine nor in one that was restored.
#[test]
fn the_interval_timer_that_nobody_programmed_interrupts_nobody() {
    let rig = rig();
    let other = self::rig();
    other.platform.restore(rig.platform.save()).unwrap();
    for rig in [rig, other] {
        let saved = saved(&rig.platform);
        assert_eq!(saved["pic"]["chips"][0]["lines"], 1);
        assert_eq!(saved["pic"]["chips"][0]["edges"], 0);
    }
}

#[test]
fn another_number_of_serial_ports_is_refused() {
    let (rig, machine) = (rig(), Machine::new());
    assert!(rig.platform.restore(machine.platform.save()).is_err());
}

/// Snapshots with changed numbers are refused, or leave a machine that a guest can do no harm with.
#[test]
fn hostile_snapshots_do_no_harm() {
    let mut random = Random(11);
    let mut taken = 0;
    for _ in 0..400 {
        let machine = Machine::new();
        machine.run(&random.script());
        let mut tree = saved(&machine.platform);
        let mut numbers = Vec::new();
        collect_numbers(&mut tree, &mut numbers);
        for _ in 0..1 + random.next() % 3 {
            let at = random.next() as usize % numbers.len();
            let old = numbers[at].as_u64().unwrap_or(0);
            let value = match random.next() % 4 {
                0 => random.next() >> (random.next() % 64),
                1 => (random.next() >> (random.next() % 64)).wrapping_neg(),
                2 => old.wrapping_add(random.next() % 3).wrapping_sub(1),
                _ => old ^ 1 << (random.next() % 8),
            };
            *numbers[at] = if value >> 63 == 0 { value.into() } else { (value as i64).into() };
        }
        let Ok(state) = serde_json::from_value(tree) else { continue };
        let other = Machine::new();
        if other.platform.restore(state).is_ok() {
            taken += 1;
        }
        other.platform.reset();
        other.run(&random.script());
    }
    assert!(taken > 20, "the changes are so wild that nothing is tested: {taken}");
}

fn collect_numbers<'a>(tree: &'a mut Value, numbers: &mut Vec<&'a mut Value>) {
    match tree {
        Value::Number(_) => numbers.push(tree),
        // Configuration space and CMOS memory would be most of the numbers.
        Value::Array(items) if items.len() > 64 => {}
        Value::Array(items) => items.iter_mut().for_each(|item| collect_numbers(item, numbers)),
        Value::Object(fields) => fields.values_mut().for_each(|field| collect_numbers(field, numbers)),
        _ => {}
    }
}
