//! Interrupts of the legacy controller.

use super::*;

#[test]
fn the_legacy_controller_comes_through_lint0() {
    let mut machine = Machine::new(2);
    machine.vm.deliver_message(0xfee0_0000, 0x51);
    machine.write(0, reg::LVT_LINT0, 0x1_0700);
    machine.signalled(signal::INTERRUPT);
    machine.vm.set_pic_line(true);
    assert_eq!(machine.signalled(signal::INTERRUPT), [0; 0]);
    machine.write(0, reg::LVT_LINT0, 0x700);
    assert_eq!(machine.signalled(signal::INTERRUPT), [0], "unmasking looks at the line");
    // It comes before the APIC's own, whatever the priorities.
    machine.with(0, |cpu| cpu.write_cr8(15));
    assert_eq!(machine.next(0), Some(0x2f));
    assert_eq!(machine.next(1), None, "wired to the first processor only");
    machine.vm.set_pic_line(false);
    assert_eq!(machine.next(0), None);
    machine.with(0, |cpu| cpu.write_cr8(0));
    assert_eq!(machine.next(0), Some(0x51));
    assert_eq!(machine.io.acknowledged.load(SeqCst), 1);
}

#[test]
fn without_an_apic_the_legacy_controller_is_heard() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_LINT0, 0x1_0700);
    machine.wrmsr(0, msr::APIC_BASE, 0xfee0_0100);
    machine.signalled(signal::INTERRUPT);
    machine.vm.set_pic_line(true);
    assert_eq!(machine.signalled(signal::INTERRUPT), [0]);
    assert_eq!(machine.next(0), Some(0x2f));
}

#[test]
fn lint0_in_other_modes_delivers_on_the_rising_edge() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_LINT0, 0x61);
    machine.vm.set_pic_line(true);
    machine.vm.set_pic_line(true);
    assert_eq!(machine.next(0), Some(0x61));
    machine.write(0, reg::EOI, 0);
    assert_eq!(machine.next(0), None);
    machine.write(0, reg::LVT_LINT0, 4 << 8);
    machine.vm.set_pic_line(false);
    machine.vm.set_pic_line(true);
    assert_eq!(machine.signalled(signal::NMI), [0]);
    assert_eq!(machine.next(0), None);
    assert_eq!(machine.io.acknowledged.load(SeqCst), 0);
}

#[test]
fn an_external_interrupt_by_message_is_acknowledged_once() {
    let mut machine = Machine::new(2);
    machine.vm.deliver_message(0xfee0_1000, 7 << 8);
    assert_eq!(machine.next(1), Some(0x2f));
    assert_eq!(machine.next(1), None);
}
