use super::*;
use crate::spec::desc;
use crate::test::{Buffer, DriverRing, Recorder};

struct Setup {
    ram: Arc<Ram>,
    driver: DriverRing,
    queue: Queue,
    recorder: Arc<Recorder>,
}

fn setup(size: u16, event_idx: bool) -> Setup {
    let ram = Arc::new(Ram::new(1 << 20).unwrap());
    let driver = DriverRing::new(ram.clone(), 0, size, 0x1000, event_idx);
    let recorder = Arc::new(Recorder::default());
    let kick = Arc::new(Kick::new().unwrap());
    let (layout, position) = (driver.layout(), Position::default());
    let queue = Queue::new(0, layout, position, event_idx, ram.clone(), kick, recorder.clone());
    Setup { ram, driver, queue, recorder }
}

#[test]
fn a_chain_arrives_with_its_buffers_in_order() {
    for indirect in [false, true] {
        let Setup { ram, mut driver, mut queue, .. } = setup(8, true);
        let buffers =
            [Buffer::Out(0x8000, 10), Buffer::Out(0x9000, 6), Buffer::In(0xa000, 4), Buffer::In(0xb000, 8)];
        let head = if indirect { driver.add_indirect(0x7008, &buffers) } else { driver.add(&buffers) };
        let mut chain = Chain::new();
        assert!(queue.has_available() && queue.pop(&mut chain));
        assert!(!queue.pop(&mut chain) && !queue.has_available());
        assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (head, 16, 12));
        ram.guest().write_slice(b"0123456789", GuestAddress(0x8000)).unwrap();
        ram.guest().write_slice(b"abcdef", GuestAddress(0x9000)).unwrap();
        let mut bytes = [0; 20];
        assert_eq!(chain.read_at(&ram, 8, &mut bytes), Ok(8));
        assert_eq!(&bytes[..8], b"89abcdef");
        assert_eq!(chain.write_at(&ram, 2, b"wxyz"), Ok(4));
        let mut written = [0; 2];
        ram.guest().read_slice(&mut written, GuestAddress(0xb000)).unwrap();
        assert_eq!(&written, b"yz");
        queue.push(head, 6);
        assert_eq!(driver.take_used(), Some((head, 6)));
        assert_eq!(driver.take_used(), None);
    }
}

#[test]
fn interrupts_come_when_the_driver_wants_them_and_once_per_batch() {
    for event_idx in [false, true] {
        let Setup { mut driver, mut queue, recorder, .. } = setup(8, event_idx);
        let mut chain = Chain::new();
        let mut round = |driver: &mut DriverRing, count: u16, enabled: bool| {
            driver.enable_interrupts(enabled);
            for _ in 0..count {
                driver.add(&[Buffer::In(0x8000, 1)]);
            }
            while queue.pop(&mut chain) {
                queue.push(chain.head(), 0);
            }
            queue.signal();
            queue.signal();
            while driver.take_used().is_some() {}
            recorder.take_used().len()
        };
        // Long enough for the indices to wrap.
        for turn in 0..10_000u16 {
            let enabled = turn % 3 != 0;
            assert_eq!(round(&mut driver, 1 + turn % 8, enabled), enabled as usize, "{event_idx} {turn}");
        }
    }
}

#[test]
fn notifications_are_asked_for_only_when_armed() {
    for event_idx in [false, true] {
        let Setup { mut driver, mut queue, .. } = setup(8, event_idx);
        let mut chain = Chain::new();
        for turn in 0..70_000u32 {
            queue.disarm();
            let before = driver.available_index();
            driver.add(&[Buffer::Out(0x8000, 1)]);
            if turn > 0 {
                assert!(!driver.wants_notification(before), "{event_idx} {turn}");
            }
            assert!(queue.arm(), "what is there is noticed");
            assert!(queue.pop(&mut chain));
            queue.push(chain.head(), 0);
            assert!(!queue.arm());
            let before = driver.available_index();
            driver.add(&[Buffer::Out(0x8000, 1)]);
            assert!(driver.wants_notification(before), "{event_idx} {turn}");
            assert!(queue.pop(&mut chain));
            queue.push(chain.head(), 0);
            while driver.take_used().is_some() {}
        }
    }
}

#[test]
fn who_needs_more_than_there_is_hears_of_more_only() {
    for event_idx in [false, true] {
        let Setup { mut driver, mut queue, .. } = setup(8, event_idx);
        let mut chain = Chain::new();
        let first = driver.add(&[Buffer::In(0x8000, 1)]);
        assert!(queue.pop(&mut chain));
        let seen = queue.next_available();
        queue.unpop();
        assert!(!queue.arm_beyond(seen) && !queue.has_beyond(seen));
        let before = driver.available_index();
        driver.add(&[Buffer::In(0x9000, 1)]);
        assert!(driver.wants_notification(before));
        assert!(queue.has_beyond(seen) && queue.arm_beyond(seen));
        assert!(queue.pop(&mut chain));
        assert_eq!(chain.head(), first, "what was put back comes again");
    }
}

#[test]
fn several_chains_become_used_at_once_across_the_wrap() {
    let Setup { mut driver, mut queue, recorder, .. } = setup(4, true);
    let mut chain = Chain::new();
    for _ in 0..50 {
        driver.enable_interrupts(true);
        let mut used = Vec::new();
        for written in 0..3 {
            driver.add(&[Buffer::In(0x8000, 8)]);
            assert!(queue.pop(&mut chain));
            used.push((chain.head(), written));
        }
        queue.push_all(&used);
        queue.signal();
        assert_eq!(recorder.take_used(), [0]);
        let taken: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
        assert_eq!(taken, used);
    }
}

#[test]
fn rings_that_make_no_sense_break_the_queue_once() {
    type Spoil = fn(&mut DriverRing);
    let table = 0x1000;
    assert_eq!(setup(8, false).driver.layout().descriptors, table);
    let spoils: &[(&str, RingError, Spoil)] = &[
        ("an index too far ahead", RingError::BadIndex, |ring| ring.publish_index(9)),
        ("an index gone back", RingError::BadIndex, |ring| ring.publish_index(u16::MAX)),
        ("a head that does not exist", RingError::BadChain, |ring| ring.publish(8)),
        ("a chain that loops", RingError::BadChain, |ring| {
            ring.write_descriptor(0x1000, 0, 0x8000, 1, desc::NEXT, 1);
            ring.write_descriptor(0x1000, 1, 0x8000, 1, desc::NEXT, 0);
            ring.publish(0);
        }),
        ("a next that does not exist", RingError::BadChain, |ring| {
            ring.write_descriptor(0x1000, 0, 0x8000, 1, desc::NEXT, 8);
            ring.publish(0);
        }),
        ("a readable buffer after a writable one", RingError::BadOrder, |ring| {
            ring.add(&[Buffer::In(0x8000, 1), Buffer::Out(0x9000, 1)]);
        }),
        ("more than 4 GiB", RingError::BadChain, |ring| {
            ring.add(&[Buffer::Out(0, u32::MAX), Buffer::Out(0, 1)]);
        }),
        ("an empty indirect table", RingError::BadChain, |ring| {
            ring.write_descriptor(0x1000, 0, 0x8000, 0, desc::INDIRECT, 0);
            ring.publish(0);
        }),
        ("an indirect table of odd size", RingError::BadChain, |ring| {
            ring.write_descriptor(0x1000, 0, 0x8000, 17, desc::INDIRECT, 0);
            ring.publish(0);
        }),
        ("an indirect table outside of RAM", RingError::BadChain, |ring| {
            ring.write_descriptor(0x1000, 0, u64::MAX - 15, 16, desc::INDIRECT, 0);
            ring.publish(0);
        }),
        ("an indirect table in an indirect table", RingError::BadChain, |ring| {
            ring.write_descriptor(0x8000, 0, 0x9000, 16, desc::INDIRECT, 0);
            ring.write_descriptor(0x1000, 0, 0x8000, 16, desc::INDIRECT, 0);
            ring.publish(0);
        }),
        ("an indirect table that loops", RingError::BadChain, |ring| {
            ring.write_descriptor(0x8000, 0, 0x9000, 16, desc::NEXT, 0);
            ring.write_descriptor(0x1000, 0, 0x8000, 16, desc::INDIRECT, 0);
            ring.publish(0);
        }),
        ("a huge indirect table", RingError::BadChain, |ring| {
            for i in 0..2000 {
                ring.write_descriptor(0x8000, i, 0x9000, 1, desc::NEXT, i + 1);
            }
            ring.write_descriptor(0x1000, 0, 0x8000, 16 * 2000, desc::INDIRECT, 0);
            ring.publish(0);
        }),
    ];
    for (what, error, spoil) in spoils {
        let Setup { mut driver, mut queue, recorder, .. } = setup(8, true);
        spoil(&mut driver);
        let mut chain = Chain::new();
        assert!(!queue.pop(&mut chain), "{what}");
        assert_eq!(recorder.fault(), Some((0, *error)), "{what}");
        assert!(queue.is_broken() && queue.position().broken);
        assert!(!queue.pop(&mut chain) && !queue.has_available() && !queue.arm() && !queue.has_beyond(0));
        queue.push(0, 0);
        queue.signal();
        assert!(recorder.take_used().is_empty(), "{what}: a broken queue is silent");
        assert_eq!(driver.take_used(), None, "{what}");
    }
}

#[test]
fn buffers_outside_of_ram_are_noticed_when_used() {
    let Setup { ram, mut driver, mut queue, .. } = setup(8, true);
    let mut chain = Chain::new();
    for gpa in [1 << 20, (1 << 20) - 2, u64::MAX - 1] {
        driver.add(&[Buffer::Out(gpa, 4), Buffer::In(gpa, 4)]);
        assert!(queue.pop(&mut chain));
        assert_eq!(chain.read_at(&ram, 0, &mut [0; 4]), Err(RingError::BadBuffer));
        assert_eq!(chain.write_at(&ram, 0, &[0; 4]), Err(RingError::BadBuffer));
        queue.push(chain.head(), 0);
        driver.take_used();
    }
}

#[test]
fn a_queue_goes_on_where_it_was_and_refuses_what_cannot_be() {
    let Setup { ram, mut driver, mut queue, recorder } = setup(8, true);
    let mut chain = Chain::new();
    for _ in 0..5 {
        driver.add(&[Buffer::Out(0x8000, 1)]);
    }
    for _ in 0..3 {
        assert!(queue.pop(&mut chain));
        queue.push(chain.head(), 0);
    }
    let (layout, position) = (driver.layout(), queue.position());
    let kick = || Arc::new(Kick::new().unwrap());
    let mut queue = Queue::new(0, layout, position, true, ram.clone(), kick(), recorder.clone());
    let mut rest = 0;
    while queue.pop(&mut chain) {
        queue.push(chain.head(), 0);
        rest += 1;
    }
    assert_eq!(rest, 2);
    assert_eq!(std::iter::from_fn(|| driver.take_used()).count(), 5);
    for layout in [
        Layout { size: 0, ..layout },
        Layout { size: 6, ..layout },
        Layout { descriptors: layout.descriptors + 8, ..layout },
        Layout { available: layout.available + 1, ..layout },
        Layout { used: layout.used + 2, ..layout },
        Layout { descriptors: (1 << 20) - 16, ..layout },
        Layout { used: u64::MAX - 3, ..layout },
    ] {
        let recorder = Arc::new(Recorder::default());
        let mut queue =
            Queue::new(3, layout, Position::default(), true, ram.clone(), kick(), recorder.clone());
        assert_eq!(recorder.fault(), Some((3, RingError::BadLayout)), "{layout:?}");
        assert!(!queue.pop(&mut chain) && !queue.arm());
        queue.push(0, 0);
        queue.signal();
    }
}
