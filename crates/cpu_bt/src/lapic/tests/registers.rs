//! Registers in memory.

use super::*;

#[test]
fn registers_have_their_reset_values() {
    let machine = Machine::new(2);
    machine.vm.lapics[1].reset();
    let lapic = &machine.vm.lapics[1];
    for (register, value) in [
        (reg::ID, 1 << 24),
        (reg::VERSION, 0x0005_0014),
        (reg::TPR, 0),
        (reg::LDR, 0),
        (reg::DFR, u32::MAX),
        (reg::SVR, 0xff),
        (reg::LVT_TIMER, LVT_MASKED),
        (reg::LVT_LINT0, LVT_MASKED),
        (reg::LVT_LINT1, LVT_MASKED),
        (reg::LVT_ERROR, LVT_MASKED),
        (reg::TIMER_INITIAL, 0),
        (reg::TIMER_CURRENT, 0),
    ] {
        assert_eq!(lapic.read(register), Some(value), "{register:#x}");
    }
    assert_eq!(lapic.base(), 0xfee0_0800);
    assert_eq!(machine.vm.lapics[0].base(), 0xfee0_0900);
    machine.vm.lapics[0].reset();
    assert_eq!(machine.vm.lapics[0].read(reg::LVT_LINT0), Some(7 << 8));
}

#[test]
fn registers_keep_what_can_be_written() {
    let mut machine = Machine::new(2);
    for (register, kept) in [
        (reg::ID, None),
        (reg::VERSION, None),
        (reg::TPR, Some(0xff)),
        (reg::PPR, None),
        (reg::LDR, Some(0xff00_0000)),
        (reg::SVR, Some(0x3ff)),
        (reg::ICR_HIGH, Some(0xff00_0000)),
        (reg::LVT_TIMER, Some(0x7_00ff)),
        (reg::LVT_THERMAL, Some(0x1_07ff)),
        (reg::LVT_PERF, Some(0x1_07ff)),
        (reg::LVT_LINT0, Some(0x1_a7ff)),
        (reg::LVT_LINT1, Some(0x1_a7ff)),
        (reg::LVT_ERROR, Some(0x1_00ff)),
        (reg::TIMER_DIVIDE, Some(0xb)),
        (reg::TIMER_CURRENT, None),
        (reg::IRR, None),
        (reg::ISR + 0x70, None),
        (reg::TMR, None),
    ] {
        let before = machine.read(1, register);
        machine.write(1, register, u32::MAX);
        assert_eq!(machine.read(1, register), kept.unwrap_or(before), "{register:#x}");
        machine.write(1, register, 0);
        assert_eq!(machine.read(1, register), kept.map_or(before, |_| 0), "{register:#x}");
        machine.write(1, reg::SVR, 0x1ff);
    }
    machine.write(1, reg::DFR, 0);
    assert_eq!(machine.read(1, reg::DFR), 0x0fff_ffff);
}

#[test]
fn software_disabling_masks_the_local_vectors_for_good() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_LINT1, 0x400);
    machine.write(0, reg::SVR, 0xff);
    assert_eq!(machine.read(0, reg::LVT_LINT1), 0x1_0400);
    machine.write(0, reg::LVT_LINT1, 0x400);
    machine.write(0, reg::SVR, 0x1ff);
    assert_eq!(machine.read(0, reg::LVT_LINT1), 0x1_0400);
    machine.write(0, reg::LVT_LINT1, 0x400);
    assert_eq!(machine.read(0, reg::LVT_LINT1), 0x400);
}

#[test]
fn errors_become_visible_by_writing_and_interrupt() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_ERROR, 0xfe);
    assert_eq!(machine.read(0, 0x40), 0);
    assert_eq!(machine.read(0, reg::ESR), 0);
    assert_eq!(machine.next(0), Some(0xfe));
    machine.write(0, reg::EOI, 0);
    // The same error again says nothing new.
    machine.write(0, 0x3f0, 0);
    assert_eq!(machine.next(0), None);
    // A command with a vector that is reserved.
    machine.write(0, reg::ICR_LOW, 2 << 18 | 0xf);
    assert_eq!(machine.next(0), Some(0xfe));
    machine.vm.deliver_message(0xfee0_0000, 0xe);
    machine.write(0, reg::ESR, 0x1234);
    assert_eq!(
        machine.read(0, reg::ESR),
        ESR_ILLEGAL_REGISTER | ESR_SEND_ILLEGAL_VECTOR | ESR_RECEIVE_ILLEGAL_VECTOR
    );
    machine.write(0, reg::ESR, 0);
    assert_eq!(machine.read(0, reg::ESR), 0);
    // An error vector that is itself illegal does not go round in circles.
    machine.write(0, reg::LVT_ERROR, 3);
    machine.vm.deliver_message(0xfee0_0000, 0xe);
    machine.write(0, reg::ESR, 0);
    assert_eq!(machine.read(0, reg::ESR), ESR_RECEIVE_ILLEGAL_VECTOR);
}

#[test]
fn memory_accesses_of_odd_shapes_do_what_they_can() {
    let mut machine = Machine::new(1);
    assert_eq!(machine.vm.lapics[0].mmio_offset(0xfee0_0030), Some(0x30));
    assert_eq!(machine.vm.lapics[0].mmio_offset(0xfee0_1030), None);
    let mut bytes = [0xaa; 8];
    machine.with(0, |cpu| cpu.lapic_mmio_read(reg::VERSION, &mut bytes));
    assert_eq!(u64::from_le_bytes(bytes), 0x0005_0014);
    let mut byte = [0xaa];
    machine.with(0, |cpu| cpu.lapic_mmio_read(reg::VERSION + 2, &mut byte));
    assert_eq!(byte, [5]);
    let mut half = [0xaa; 2];
    machine.with(0, |cpu| cpu.lapic_mmio_read(reg::VERSION + 3, &mut half));
    assert_eq!(half, [0, 0]);
    machine.with(0, |cpu| cpu.lapic_mmio_read(reg::VERSION + 8, &mut half));
    assert_eq!(half, [0, 0]);
    // Writes of parts of registers, or beside them, are nothing.
    machine.with(0, |cpu| {
        cpu.lapic_mmio_write(reg::TPR, &[0x50]);
        cpu.lapic_mmio_write(reg::TPR + 4, &[0x50, 0, 0, 0]);
        cpu.lapic_mmio_write(reg::TPR, &[]);
    });
    assert_eq!(machine.read(0, reg::TPR), 0);
    // Of eight bytes, the low four are the register.
    machine.with(0, |cpu| cpu.lapic_mmio_write(reg::TPR, &[0x50, 0, 0, 0, 1, 1, 1, 1]));
    assert_eq!(machine.read(0, reg::TPR), 0x50);
}
