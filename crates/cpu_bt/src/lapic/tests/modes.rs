//! Modes and registers of x2APIC.

use super::*;

#[test]
fn modes_change_only_as_they_may() {
    const OFF: u64 = 0xfee0_0000;
    const XAPIC: u64 = OFF | base::ENABLE;
    const X2APIC: u64 = XAPIC | base::X2APIC;
    for (from, to, allowed) in [
        (vec![], XAPIC, true),
        (vec![], X2APIC, true),
        (vec![], OFF, true),
        (vec![], OFF | base::X2APIC, false),
        (vec![X2APIC], X2APIC, true),
        (vec![X2APIC], XAPIC, false),
        (vec![X2APIC], OFF, true),
        (vec![X2APIC], OFF | base::X2APIC, false),
        (vec![OFF], XAPIC, true),
        (vec![OFF], X2APIC, false),
        (vec![X2APIC, OFF], XAPIC, true),
        (vec![], XAPIC | 1, false),
        (vec![], XAPIC | 1 << 9, false),
        (vec![], XAPIC | 1 << x86::cpuid::PHYS_BITS, false),
        (vec![], 0x1_2345_6000 | base::ENABLE, true),
    ] {
        let mut machine = Machine::new(2);
        for step in &from {
            machine.wrmsr(1, msr::APIC_BASE, *step);
        }
        let before = machine.vm.lapics[1].base();
        let result = machine.with(1, |cpu| cpu.lapic_write_msr(msr::APIC_BASE, to));
        assert_eq!(result.is_ok(), allowed, "{from:x?} to {to:x}");
        let after = machine.with(1, |cpu| cpu.lapic_read_msr(msr::APIC_BASE)).unwrap();
        assert_eq!(after, if allowed { to } else { before });
    }
}

#[test]
fn the_page_moves_and_goes() {
    let mut machine = Machine::new(1);
    machine.wrmsr(0, msr::APIC_BASE, 0x1_2345_6000 | base::ENABLE);
    assert_eq!(machine.vm.lapics[0].mmio_offset(0x1_2345_6080), Some(0x80));
    assert_eq!(machine.vm.lapics[0].mmio_offset(0xfee0_0080), None);
    machine.wrmsr(0, msr::APIC_BASE, 0xfee0_0000 | base::ENABLE | base::X2APIC);
    assert_eq!(machine.vm.lapics[0].mmio_offset(0xfee0_0080), None);
}

#[test]
fn disabling_resets_and_x2apic_keeps() {
    let mut machine = Machine::new(2);
    machine.write(1, reg::TPR, 0x20);
    machine.write(1, reg::ICR_HIGH, 0x5500_0000);
    machine.vm.deliver_message(0xfee0_1000, 0x99);
    machine.wrmsr(1, msr::APIC_BASE, 0xfee0_0c00);
    let mut get = |number| machine.with(1, |cpu| cpu.lapic_read_msr(number)).unwrap();
    assert_eq!((get(0x802), get(0x80d), get(0x808), get(0x830)), (1, 2, 0x20, 0));
    assert_eq!(get(0x824), 1 << 25);
    machine.wrmsr(1, msr::APIC_BASE, 0xfee0_0000);
    machine.wrmsr(1, msr::APIC_BASE, 0xfee0_0800);
    assert_eq!(machine.read(1, reg::TPR), 0);
    assert_eq!(machine.read(1, reg::ID), 1 << 24);
    assert_eq!(machine.read(1, reg::SVR), 0xff);
    assert_eq!(machine.next(1), None);
}

#[test]
fn x2apic_registers_are_guarded() {
    let mut machine = Machine::x2apic(1);
    let mut try_both = |number: u32, value: u64| {
        let read = machine.with(0, |cpu| cpu.lapic_read_msr(number)).is_ok();
        let write = machine.with(0, |cpu| cpu.lapic_write_msr(number, value)).is_ok();
        (read, write)
    };
    for (number, value, expected) in [
        (0x802, 0, (true, false)),
        (0x803, 0, (true, false)),
        (0x808, 0xff, (true, true)),
        (0x808, 0x100, (true, false)),
        (0x808, 1 << 32, (true, false)),
        (0x809, 0, (false, false)),
        (0x80a, 0, (true, false)),
        (0x80b, 0, (false, true)),
        (0x80b, 1, (false, false)),
        (0x80d, 0, (true, false)),
        (0x80e, 0, (false, false)),
        (0x80f, 0x1ff, (true, true)),
        (0x80f, 0x11ff, (true, false)),
        (0x810, 0, (true, false)),
        (0x817, 0, (true, false)),
        (0x818, 0, (true, false)),
        (0x820, 0, (true, false)),
        (0x827, 0, (true, false)),
        (0x828, 0, (true, true)),
        (0x828, 1, (true, false)),
        (0x82f, 0, (false, false)),
        (0x830, 0xffff_ffff_0000_4077, (true, true)),
        (0x830, 1 << 12 | 0x77, (true, true)),
        (0x830, 1 << 13 | 0x77, (true, false)),
        (0x830, 1 << 16 | 0x77, (true, false)),
        (0x830, 1 << 20 | 0x77, (true, false)),
        (0x831, 0, (false, false)),
        (0x832, 0x7_00ff, (true, true)),
        (0x832, 0x8_0000, (true, false)),
        (0x832, 0x1_0ff0, (true, false)),
        (0x833, 0x1_07ff, (true, true)),
        (0x834, 0x1_07ff, (true, true)),
        (0x835, 0x1_f7ff, (true, true)),
        (0x835, 0x2_0000, (true, false)),
        (0x836, 0x1_f7ff, (true, true)),
        (0x837, 0x1_10ff, (true, true)),
        (0x837, 0x1_0700, (true, false)),
        (0x838, 0xffff_ffff, (true, true)),
        (0x838, 1 << 32, (true, false)),
        (0x839, 0, (true, false)),
        (0x83e, 0xb, (true, true)),
        (0x83e, 4, (true, false)),
        (0x83f, 0x44, (false, true)),
        (0x83f, 0x144, (false, false)),
        (0x800, 0, (false, false)),
        (0x840, 0, (false, false)),
        (0x8ff, 0, (false, false)),
    ] {
        assert_eq!(try_both(number, value), expected, "{number:#x} {value:#x}");
    }
    // And only in x2APIC mode.
    let mut machine = Machine::new(1);
    assert!(machine.with(0, |cpu| cpu.lapic_read_msr(0x802)).is_err());
    assert!(machine.with(0, |cpu| cpu.lapic_write_msr(0x80b, 0)).is_err());
}

#[test]
fn the_x2apic_command_register_reads_back() {
    let mut machine = Machine::x2apic(1);
    machine.wrmsr(0, 0x830, 7 << 32 | 1 << 12 | 0x4077);
    let value = machine.with(0, |cpu| cpu.lapic_read_msr(0x830)).unwrap();
    assert_eq!(value, 7 << 32 | 0x4077);
}
