//! Who receives what.

use super::*;

#[test]
fn messages_signalled_in_memory_are_decoded() {
    let message = |to, delivery, vector, level| Some(Message { to, delivery, vector, level });
    use Destination::*;
    use delivery::*;
    for (address, data, expected) in [
        (0xfee0_0000, 0x31, message(Physical(0), FIXED, 0x31, false)),
        (0xfee0_3000, 0x8031, message(Physical(3), FIXED, 0x31, true)),
        (0xfee0_3000, 0xc031, message(Physical(3), FIXED, 0x31, true)),
        (0xfee0_3004, 0x131, message(Logical(3), LOWEST_PRIORITY, 0x31, false)),
        (0xfee0_3008, 0x31, message(Physical(3), LOWEST_PRIORITY, 0x31, false)),
        (0xfee0_300c, 0x31, message(Logical(3), LOWEST_PRIORITY, 0x31, false)),
        (0xfeef_f000, 0x31, message(Everyone, FIXED, 0x31, false)),
        (0xfeef_f004, 0x31, message(Everyone, FIXED, 0x31, false)),
        (0xfee0_0000, 0x400, message(Physical(0), NMI, 0, false)),
        (0xfee0_0000, 0x500, message(Physical(0), INIT, 0, false)),
        (0xfee0_0000, 0x700, message(Physical(0), EXTINT, 0, false)),
        // System management, reserved, start-up; other addresses.
        (0xfee0_0000, 0x200, None),
        (0xfee0_0000, 0x300, None),
        (0xfee0_0000, 0x600, None),
        (0xfed0_0000, 0x31, None),
        (0x1_fee0_0000, 0x31, None),
        (0, 0, None),
    ] {
        assert_eq!(Message::from_msi(address, data), expected, "{address:#x} {data:#x}");
    }
}

/// Who receives an interrupt command of vCPU 1 of four.
fn commanded(machine: &mut Machine, high: u32, low: u32) -> Vec<usize> {
    machine.write(1, reg::ICR_HIGH, high);
    machine.write(1, reg::ICR_LOW, low | 0x77);
    assert_eq!(machine.read(1, reg::ICR_LOW), low | 0x77, "never busy");
    machine.receivers(0x77)
}

#[test]
fn commands_reach_those_they_name() {
    let mut machine = Machine::new(4);
    let all = vec![0, 1, 2, 3];
    for (high, low, expected) in [
        (0, 0, vec![0]),
        (3 << 24, 0, vec![3]),
        (4 << 24, 0, vec![]),
        (0xff << 24, 0, all.clone()),
        (0, 1 << 18, vec![1]),
        (0, 2 << 18, all.clone()),
        (2 << 24, 3 << 18, vec![0, 2, 3]),
        (0xff << 24, 0x800, all.clone()),
        // Logical IDs are zero yet.
        (0xf << 24, 0x800, vec![]),
    ] {
        assert_eq!(commanded(&mut machine, high, low), expected, "{high:#x} {low:#x}");
    }
    // Flat: a bit each.
    for id in 0..4 {
        machine.write(id, reg::LDR, 1 << (24 + id));
    }
    assert_eq!(commanded(&mut machine, 0x0d << 24, 0x800), [0, 2, 3]);
    assert_eq!(commanded(&mut machine, 0x10 << 24, 0x800), [0; 0]);
    // Clusters: 0, 1 in cluster 1; 2, 3 in cluster 2.
    for (id, logical) in [0x11, 0x12, 0x21, 0x28].into_iter().enumerate() {
        machine.write(id, reg::LDR, logical << 24);
        machine.write(id, reg::DFR, 0x0fff_ffff);
    }
    for (id, expected) in
        [(0x13, vec![0, 1]), (0x2f, vec![2, 3]), (0x28, vec![3]), (0x14, vec![]), (0xf1, vec![0, 2])]
    {
        assert_eq!(commanded(&mut machine, id << 24, 0x800), expected, "{id:#x}");
    }
    // A model that does not exist hears nothing.
    machine.write(0, reg::DFR, 0x5fff_ffff);
    assert_eq!(commanded(&mut machine, 0x13 << 24, 0x800), [1]);
}

#[test]
fn commands_in_x2apic_mode_have_wide_destinations() {
    let mut machine = Machine::x2apic(20);
    let mut commanded = |value: u64| {
        machine.wrmsr(1, 0x830, value | 0x77);
        machine.receivers(0x77)
    };
    assert_eq!(commanded(19 << 32), [19]);
    assert_eq!(commanded(0xff << 32), [0; 0], "an ID like any other");
    assert_eq!(commanded(0xffff_ffff << 32).len(), 20);
    assert_eq!(commanded(0x0001_000f << 32 | 0x800), [16, 17, 18, 19]);
    assert_eq!(commanded(0x8001 << 32 | 0x800), [0, 15]);
    assert_eq!(commanded(0x0002_ffff << 32 | 0x800), [0; 0]);
    assert_eq!(commanded(3 << 18).len(), 19);
    machine.wrmsr(5, 0x83f, 0x77);
    assert_eq!(machine.receivers(0x77), [5]);
    // Messages have eight bits: enough for the first cluster.
    machine.vm.deliver_message(0xfee1_3000, 0x77);
    assert_eq!(machine.receivers(0x77), [19]);
    machine.vm.deliver_message(0xfee0_6004, 0x77);
    assert_eq!(machine.receivers(0x77), [1, 2]);
    machine.vm.deliver_message(0xfeef_f000, 0x77);
    assert_eq!(machine.receivers(0x77).len(), 20);
}

#[test]
fn commands_start_and_interrupt_processors() {
    let mut machine = Machine::new(3);
    machine.write(0, reg::ICR_LOW, 3 << 18 | 4 << 8);
    assert_eq!(machine.signalled(signal::NMI), [1, 2]);
    // INIT, level asserted; then deasserted, which is nothing.
    machine.write(0, reg::ICR_HIGH, 2 << 24);
    machine.write(0, reg::ICR_LOW, 0xc500);
    assert_eq!(machine.signalled(signal::INIT), [2]);
    machine.write(0, reg::ICR_LOW, 0x8500);
    assert_eq!(machine.signalled(signal::INIT), [0; 0]);
    machine.write(0, reg::ICR_LOW, 0x69a);
    assert_eq!(machine.vm.lapics[2].take_startup_vector(), 0x9a);
    assert_eq!(machine.pending(2) & signal::SIPI, signal::SIPI);
    // INIT undoes a start-up that was not seen yet.
    machine.write(0, reg::ICR_LOW, 0x500);
    assert_eq!(machine.signalled(signal::SIPI), [0; 0]);
    assert_eq!(machine.signalled(signal::INIT), [2]);
    // System management and reserved modes do nothing.
    machine.signalled(signal::INTERRUPT);
    machine.write(0, reg::ICR_LOW, 2 << 18 | 0x200);
    machine.write(0, reg::ICR_LOW, 2 << 18 | 0x300);
    assert!((0..3).all(|id| machine.pending(id) == 0));
}

#[test]
fn the_lowest_priority_gets_it() {
    let mut machine = Machine::new(4);
    for (id, task) in [0x30, 0x20, 0x2f, 0x30].into_iter().enumerate() {
        machine.write(id, reg::TPR, task);
        machine.write(id, reg::LDR, 1 << (24 + id));
    }
    let to = |machine: &mut Machine, address: u64, vector: u8| {
        machine.vm.deliver_message(address, 0x100 | vector as u32);
        let receivers = machine.receivers(vector);
        assert!(receivers.len() <= 1);
        receivers.first().copied()
    };
    // Of those with the lowest class, each vector has its own.
    assert_eq!(to(&mut machine, 0xfeef_f004, 0x40), Some(1));
    assert_eq!(to(&mut machine, 0xfeef_f004, 0x41), Some(2));
    assert_eq!(to(&mut machine, 0xfee0_9004, 0x40), Some(0));
    assert_eq!(to(&mut machine, 0xfee0_3000, 0x40), Some(3));
    // One that takes nothing is no candidate.
    machine.write(1, reg::SVR, 0xff);
    assert_eq!(to(&mut machine, 0xfeef_f004, 0x40), Some(2));
    assert_eq!(to(&mut machine, 0xfee0_2004, 0x40), None);
}

#[test]
fn paravirtual_commands_reach_a_bitmap() {
    let machine = Machine::new(70);
    let vm = &machine.vm;
    assert_eq!(vm.send_ipi_mask(0b1011, 0, 2, 0x77, 64), 3);
    assert_eq!(machine.receivers(0x77), [2, 3, 5]);
    assert_eq!(vm.send_ipi_mask(1 << 63, 1, 0, 0x77, 64), 2);
    assert_eq!(machine.receivers(0x77), [63, 64]);
    assert_eq!(vm.send_ipi_mask(1 << 31 | 1 << 40, 1, 0, 0x77, 32), 2);
    assert_eq!(machine.receivers(0x77), [31, 32]);
    assert_eq!(vm.send_ipi_mask(u64::MAX, u64::MAX, 60, 0x77, 64), 10, "those that exist");
    machine.receivers(0x77);
    assert_eq!(vm.send_ipi_mask(u64::MAX, u64::MAX, u32::MAX, 0x77, 64), 0);
    assert_eq!(vm.send_ipi_mask(1, 0, 1, 0x400, 64), 1);
    assert_eq!(machine.signalled(signal::NMI), [1]);
    for refused in [0x877, 1 << 18 | 0x77, 3 << 18 | 0x77] {
        assert_eq!(vm.send_ipi_mask(1, 0, 0, refused, 64), -22);
    }
    assert!(machine.receivers(0x77).is_empty());
}
