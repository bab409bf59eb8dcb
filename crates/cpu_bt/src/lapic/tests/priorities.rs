//! Which vector comes when.

use super::*;

#[test]
fn vectors_are_delivered_by_priority() {
    let mut machine = Machine::new(1);
    for vector in [0x31, 0xa0, 0x35, 0x10, 0xff] {
        machine.vm.deliver_message(0xfee0_0000, vector);
    }
    assert_ne!(machine.pending(0) & signal::INTERRUPT, 0);
    assert_eq!(machine.next(0), Some(0xff));
    assert_eq!(machine.read(0, reg::PPR), 0xf0);
    // Nothing of a lower class while it is in service.
    assert_eq!(machine.next(0), None);
    machine.write(0, reg::EOI, 0);
    assert_ne!(machine.pending(0) & signal::INTERRUPT, 0, "the end raises the next one");
    assert_eq!(machine.next(0), Some(0xa0));
    // A higher one interrupts it; ends go from the highest down.
    machine.vm.deliver_message(0xfee0_0000, 0xb1);
    assert_eq!(machine.next(0), Some(0xb1));
    assert_eq!(machine.read(0, reg::ISR + 0x50), 1 << 17 | 1);
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.read(0, reg::ISR + 0x50), 1);
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), Some(0x35));
    assert_eq!(machine.next(0), None, "0x31 is of the same class");
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), Some(0x31));
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), Some(0x10));
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), None);
    // An end without an interrupt is nothing.
    machine.write(0, reg::EOI, 0);
}

#[test]
fn the_task_priority_holds_interrupts_back() {
    let mut machine = Machine::new(1);
    machine.with(0, |cpu| cpu.write_cr8(4));
    assert_eq!(machine.read(0, reg::TPR), 0x40);
    machine.write(0, reg::TPR, 0x4f);
    assert_eq!(machine.with(0, |cpu| cpu.read_cr8()), 4);
    machine.vm.deliver_message(0xfee0_0000, 0x4e);
    assert_eq!(machine.next(0), None);
    assert_eq!(machine.read(0, reg::PPR), 0x4f);
    machine.with(0, |cpu| cpu.write_cr8(5));
    assert_eq!(machine.pending(0) & signal::INTERRUPT, 0, "raising it is no reason to look");
    machine.with(0, |cpu| cpu.write_cr8(3));
    assert_ne!(machine.pending(0) & signal::INTERRUPT, 0);
    assert_eq!(machine.next(0), Some(0x4e));
    assert_eq!(machine.read(0, reg::PPR), 0x40);
}

#[test]
fn an_interrupt_requested_twice_before_its_delivery_comes_once() {
    let mut machine = Machine::new(1);
    machine.vm.deliver_message(0xfee0_0000, 0x50);
    machine.vm.deliver_message(0xfee0_0000, 0x50);
    assert_eq!(machine.next(0), Some(0x50));
    // While it is in service one more is kept.
    machine.vm.deliver_message(0xfee0_0000, 0x50);
    assert_eq!(machine.next(0), None);
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), Some(0x50));
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), None);
}

#[test]
fn the_end_of_level_triggered_interrupts_is_told() {
    let mut machine = Machine::new(1);
    for (data, told) in [(0x51, vec![]), (0x8051, vec![0x51]), (0x51, vec![])] {
        machine.vm.deliver_message(0xfee0_0000, data);
        assert_eq!(machine.read(0, reg::TMR + 0x20) & 1 << 17 != 0, !told.is_empty());
        assert_eq!(machine.next(0), Some(0x51));
        machine.write(0, reg::EOI, 0);
        assert_eq!(std::mem::take(&mut *machine.io.ended.lock().unwrap()), told);
    }
}

#[test]
fn a_disabled_apic_takes_no_fixed_interrupts() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::SVR, 0xff);
    machine.vm.deliver_message(0xfee0_0000, 0x51);
    machine.vm.deliver_message(0xfee0_0000, 4 << 8);
    assert_eq!(machine.next(0), None);
    assert_eq!(machine.signalled(signal::NMI), [0], "but other messages");
    machine.wrmsr(0, msr::APIC_BASE, 0xfee0_0100);
    assert_eq!(machine.vm.lapics[0].mmio_offset(0xfee0_0030), None);
    machine.vm.deliver_message(0xfee0_0000, 4 << 8);
    assert_eq!(machine.signalled(signal::NMI), [0; 0], "a switched-off one hears nothing");
}
