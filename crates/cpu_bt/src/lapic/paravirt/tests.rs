//! Paravirtual registers as guests use them.

use super::super::tests::Machine;
use super::clock::tsc_to_system;
use super::*;
use crate::signals::signal;
use x86::apic::reg;

const PAGE: u64 = 0x5000;

/// What a guest computes from its TSC (Linux, Documentation/virt/kvm/x86/msr.rst).
fn pvclock(machine: &Machine, at: u64, tsc: u64) -> u64 {
    let ram = &machine.vm.ram;
    let half = |offset| ram.load::<u32>(at + offset).unwrap() as u64;
    let word = |offset| half(offset) | half(offset + 4) << 32;
    let (timestamp, system, mul) = (word(8), word(16), half(24));
    let shift = ram.load::<u8>(at + 28).unwrap() as i8;
    let delta = tsc - timestamp;
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    system + ((delta as u128 * mul as u128) >> 32) as u64
}

#[test]
fn the_factor_is_as_exact_as_it_can_be() {
    for hz in [
        500_000_000,
        999_999_999,
        1_000_000_000,
        1_996_250_000,
        2_600_000_000,
        4_999_999_999,
        10_000_000_000u64,
    ] {
        let (mul, shift) = tsc_to_system(hz);
        assert!(mul >= 1 << 31, "{hz}");
        // An hour of ticks is an hour, to a microsecond.
        let ticks = hz * 3600;
        let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
        let ns = ((shifted as u128 * mul as u128) >> 32) as u64;
        assert!(ns.abs_diff(3_600_000_000_000) < 1_700, "{hz}: {ns}");
    }
}

#[test]
fn the_clock_is_guest_time() {
    for (number, at) in [(msr::KVM_SYSTEM_TIME, PAGE), (SYSTEM_TIME_OLD, PAGE + 4)] {
        let mut machine = Machine::new(2);
        for cpu in &mut machine.cpus {
            cpu.kvm_write_msr(number, at | 1).unwrap();
            assert_eq!(cpu.kvm_read_msr(number), Ok(at | 1));
        }
        let tsc = machine.vm.clock.tsc();
        let (theirs, ours) = (pvclock(&machine, at, tsc), machine.vm.clock.tsc_to_ns(tsc));
        assert!(theirs.abs_diff(ours) < 100, "{theirs} {ours}");
        let version = machine.vm.ram.load::<u32>(at).unwrap();
        assert_eq!(version % 2, 0);
        assert_eq!(machine.vm.ram.load::<u8>(at + 29), Some(1), "stable");
        // A pause changes nothing: the TSC stood still.
        machine.vm.clock.pause();
        machine.vm.clock.resume();
        let tsc = machine.vm.clock.tsc();
        assert!(pvclock(&machine, at, tsc).abs_diff(machine.vm.clock.tsc_to_ns(tsc)) < 100);
        // The guest moves its TSC: the clock goes on as before, and its version has changed.
        machine.cpus[0].sys.tsc_adjust = 12_345_678_901;
        machine.cpus[0].tsc_adjust_changed();
        let tsc = machine.vm.clock.tsc();
        let theirs = pvclock(&machine, at, tsc + 12_345_678_901);
        assert!(theirs.abs_diff(machine.vm.clock.tsc_to_ns(tsc)) < 100);
        assert!(machine.vm.ram.load::<u32>(at).unwrap() > version);
        assert_eq!(machine.vm.ram.load::<u8>(at + 29), Some(0));
    }
}

#[test]
fn a_clock_that_is_off_or_nowhere_is_not_written() {
    let mut machine = Machine::new(1);
    let cpu = &mut machine.cpus[0];
    cpu.kvm_write_msr(msr::KVM_SYSTEM_TIME, PAGE).unwrap();
    assert_eq!(cpu.ram.load::<u64>(PAGE + 24), Some(0));
    for at in [1 << 40, u64::MAX - 64, (2 << 20) - 4, PAGE + 2] {
        cpu.kvm_write_msr(msr::KVM_SYSTEM_TIME, at | 1).unwrap();
        cpu.kvm_write_msr(msr::KVM_WALL_CLOCK, at).unwrap();
    }
    assert_eq!(cpu.ram.load::<u64>(PAGE), Some(0));
}

#[test]
fn the_wall_clock_is_when_guest_time_began() {
    let mut machine = Machine::new(1);
    for (number, expected) in [(msr::KVM_WALL_CLOCK, 2), (WALL_CLOCK_OLD, 4)] {
        machine.cpus[0].kvm_write_msr(number, PAGE).unwrap();
        let word = |offset| machine.vm.ram.load::<u32>(PAGE + offset).unwrap();
        assert_eq!(word(0), expected);
        let told = word(4) as u64 * 1_000_000_000 + word(8) as u64;
        assert_eq!(told, machine.vm.clock.wall_base_ns());
    }
    assert_eq!(machine.cpus[0].kvm_read_msr(msr::KVM_WALL_CLOCK), Ok(PAGE));
}

#[test]
fn registers_refuse_what_they_cannot_be() {
    let mut machine = Machine::new(1);
    let cpu = &mut machine.cpus[0];
    for (number, value, good) in [
        (msr::KVM_STEAL_TIME, PAGE | 1, true),
        (msr::KVM_STEAL_TIME, PAGE | 2, false),
        (msr::KVM_STEAL_TIME, PAGE | 0x21, false),
        (msr::KVM_EOI_EN, PAGE | 5, true),
        (msr::KVM_EOI_EN, PAGE | 3, false),
        (msr::KVM_EOI_EN, 0, true),
        (msr::KVM_POLL_CONTROL, 0, true),
        (msr::KVM_POLL_CONTROL, 1, true),
        (msr::KVM_POLL_CONTROL, 2, false),
        (msr::KVM_ASYNC_PF_EN, 0, false),
        (0x4b56_4d06, 0, false),
        (0x13, 0, false),
    ] {
        let before = cpu.kvm_read_msr(number);
        assert_eq!(cpu.kvm_write_msr(number, value).is_ok(), good, "{number:#x} {value:#x}");
        assert_eq!(cpu.kvm_read_msr(number), if good { Ok(value) } else { before });
    }
}

// ---- end of interrupt ----

fn next(machine: &mut Machine) -> Option<u8> {
    struct None;
    impl ::cpu::CpuIo for None {
        fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
        fn pio_write(&self, _port: u16, _data: &[u8]) {}
        fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
        fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
        fn end_of_interrupt(&self, _vector: u8) {}
        fn pic_acknowledge(&self) -> u8 {
            0
        }
    }
    machine.cpus[0].with_io(&None, Cpu::next_interrupt)
}

/// Ends an interrupt as Linux does: by clearing the bit if it is set, else by writing to the APIC.
/// Returns whether the write was spared.
fn end(machine: &mut Machine) -> bool {
    let word = machine.vm.ram.load::<u32>(PAGE).unwrap();
    machine.vm.ram.store(PAGE, word & !1);
    if word & 1 == 0 {
        machine.cpus[0].lapic_mmio_write(reg::EOI, &[0; 4]);
    }
    word & 1 != 0
}

fn with_eoi() -> Machine {
    let mut machine = Machine::new(1);
    machine.vm.ram.store(PAGE, 0xf0u32);
    machine.cpus[0].kvm_write_msr(msr::KVM_EOI_EN, PAGE | 1).unwrap();
    machine
}

#[test]
fn an_end_in_memory_spares_the_write() {
    let mut machine = with_eoi();
    for _ in 0..3 {
        machine.vm.deliver_message(0xfee0_0000, 0x51);
        assert_eq!(next(&mut machine), Some(0x51));
        assert!(end(&mut machine));
        assert_eq!(machine.vm.ram.load::<u32>(PAGE), Some(0xf0), "other bits are the guest's");
        assert_eq!(next(&mut machine), None);
        assert_eq!(machine.cpus[0].lapic.highest(reg::ISR), None);
    }
}

#[test]
fn a_second_interrupt_withdraws_the_offer() {
    let mut machine = with_eoi();
    machine.vm.deliver_message(0xfee0_0000, 0x51);
    assert_eq!(next(&mut machine), Some(0x51));
    machine.vm.deliver_message(0xfee0_0000, 0x52);
    assert_eq!(next(&mut machine), None);
    machine.vm.signals[0].take(signal::INTERRUPT);
    assert!(!end(&mut machine), "the APIC has to hear of it");
    assert_ne!(machine.vm.signals[0].pending() & signal::INTERRUPT, 0);
    assert_eq!(next(&mut machine), Some(0x52));
    assert!(end(&mut machine));
}

#[test]
fn nested_interrupts_end_in_their_order() {
    let mut machine = with_eoi();
    machine.vm.deliver_message(0xfee0_0000, 0x51);
    assert_eq!(next(&mut machine), Some(0x51));
    machine.vm.deliver_message(0xfee0_0000, 0x91);
    assert_eq!(next(&mut machine), Some(0x91));
    assert!(end(&mut machine), "the inner one");
    assert!(!end(&mut machine), "the outer one");
    assert_eq!(machine.cpus[0].lapic.highest(reg::ISR), None);
    // An end in memory, then an interrupt before anyone has looked.
    machine.vm.deliver_message(0xfee0_0000, 0x91);
    assert_eq!(next(&mut machine), Some(0x91));
    assert!(end(&mut machine));
    machine.vm.deliver_message(0xfee0_0000, 0x31);
    assert_eq!(next(&mut machine), Some(0x31));
}

#[test]
fn no_offer_where_the_end_matters_to_others() {
    let mut machine = with_eoi();
    machine.vm.deliver_message(0xfee0_0000, 0x8051);
    assert_eq!(next(&mut machine), Some(0x51));
    assert_eq!(machine.vm.ram.load::<u32>(PAGE), Some(0xf0), "level-triggered");
    machine.cpus[0].lapic.end_of_interrupt();
    machine.vm.deliver_message(0xfee0_0000, 0x51);
    machine.vm.deliver_message(0xfee0_0000, 0x52);
    assert_eq!(next(&mut machine), Some(0x52));
    assert_eq!(machine.vm.ram.load::<u32>(PAGE), Some(0xf0), "another one waits");
}

#[test]
fn a_saved_state_knows_of_no_offer() {
    let mut machine = with_eoi();
    machine.vm.deliver_message(0xfee0_0000, 0x51);
    assert_eq!(next(&mut machine), Some(0x51));
    machine.cpus[0].paravirt_settle();
    assert_eq!(machine.vm.ram.load::<u32>(PAGE), Some(0xf0));
    assert_eq!(machine.cpus[0].lapic.highest(reg::ISR), Some(0x51));
    machine.vm.deliver_message(0xfee0_0000, 0x91);
    assert_eq!(next(&mut machine), Some(0x91));
    assert!(end(&mut machine));
    machine.cpus[0].paravirt_settle();
    assert_eq!(machine.cpus[0].lapic.highest(reg::ISR), Some(0x51));
    // Switching it off with an offer outstanding takes it back.
    machine.vm.deliver_message(0xfee0_0000, 0x91);
    assert_eq!(next(&mut machine), Some(0x91));
    machine.cpus[0].kvm_write_msr(msr::KVM_EOI_EN, 0).unwrap();
    assert_eq!(machine.vm.ram.load::<u32>(PAGE), Some(0xf0));
    assert_eq!(machine.cpus[0].lapic.highest(reg::ISR), Some(0x91));
}

#[test]
fn registers_are_saved_and_restored() {
    let mut machine = Machine::new(1);
    let values = [
        (msr::KVM_WALL_CLOCK, PAGE),
        (msr::KVM_SYSTEM_TIME, PAGE + 0x41),
        (msr::KVM_STEAL_TIME, PAGE + 0x81),
        (msr::KVM_EOI_EN, PAGE + 0x101),
        (msr::KVM_POLL_CONTROL, 0),
    ];
    for (number, value) in values {
        machine.cpus[0].kvm_write_msr(number, value).unwrap();
    }
    assert_eq!(machine.cpus[0].kvm_save_msrs(), values);
    let mut other = Machine::new(1);
    for (number, value) in values {
        other.cpus[0].kvm_restore_msr(number, value).unwrap();
    }
    assert_eq!(other.cpus[0].kvm_save_msrs(), values);
    assert_eq!(other.vm.ram.load::<u32>(PAGE), Some(0), "the wall clock was read long ago");
    assert_eq!(other.vm.ram.load::<u32>(PAGE + 0x40), Some(2));
    other.cpus[0].kvm_reset();
    assert_eq!(
        other.cpus[0].kvm_save_msrs().iter().map(|(_, value)| *value).collect::<Vec<_>>(),
        [0, 0, 0, 0, 1]
    );
}

// ---- steal time and sleep ----

#[test]
fn time_withheld_is_reported() {
    let mut machine = Machine::new(1);
    let cpu = &mut machine.cpus[0];
    cpu.ram.store(PAGE, 1_000u64);
    cpu.kvm_write_msr(msr::KVM_STEAL_TIME, PAGE | 1).unwrap();
    let start = cpu.lapic.paravirt.withheld_ns.load(Relaxed);
    let told = |cpu: &Cpu| (cpu.ram.load::<u64>(PAGE).unwrap(), cpu.ram.load::<u32>(PAGE + 8).unwrap());
    cpu.report_steal_time(start);
    assert_eq!(told(cpu), (1_000, 0));
    cpu.report_steal_time(start + 500);
    assert_eq!(told(cpu), (1_500, 2));
    // On another thread the account begins anew.
    cpu.report_steal_time(7);
    cpu.report_steal_time(107);
    assert_eq!(told(cpu), (1_600, 4));
    cpu.kvm_write_msr(msr::KVM_STEAL_TIME, 0).unwrap();
    cpu.report_steal_time(1_000_000);
    assert_eq!(told(cpu), (1_600, 4));
}

#[test]
fn the_schedulers_account_is_read() {
    for (text, expected) in [
        ("123 456 7\n", Some(456)),
        ("0 0 0\n", Some(0)),
        ("123\n", None),
        ("", None),
        ("a b c", None),
        ("1 99999999999999999999 1", None),
    ] {
        assert_eq!(steal::parse_schedstat(text.as_bytes()), expected, "{text:?}");
    }
    // Does not go backwards.
    let before = steal::withheld_ns();
    assert!(steal::withheld_ns() >= before);
}

#[test]
fn others_see_that_a_vcpu_sleeps_and_leave_work_for_it() {
    let mut machine = Machine::new(1);
    let at = PAGE + 16;
    let cpu = &mut machine.cpus[0];
    cpu.paravirt_sleep_begins();
    assert_eq!(cpu.ram.load::<u8>(at), Some(0), "not asked for");
    cpu.paravirt_sleep_ends();
    cpu.kvm_write_msr(msr::KVM_STEAL_TIME, PAGE | 1).unwrap();
    for (left, flushed) in [(1u8, false), (3, true)] {
        let host = cpu.ram.host_page(0x8000).unwrap().ptr;
        let mmu = cpu.mode.data;
        cpu.tlb.insert(mmu, 0x8000, host, true, false);
        cpu.paravirt_sleep_begins();
        assert_eq!(cpu.ram.load::<u8>(at), Some(1));
        cpu.ram.store(at, left);
        cpu.paravirt_sleep_ends();
        assert_eq!(cpu.ram.load::<u8>(at), Some(0));
        assert_eq!(cpu.tlb.lookup_read(mmu, 0x8000, 1).is_none(), flushed);
    }
}

#[test]
fn a_kick_ends_this_halt_or_the_next() {
    let machine = Machine::new(2);
    let lapic = &machine.vm.lapics[1];
    assert!(!lapic.take_unhalted());
    machine.vm.kick_vcpu(1);
    machine.vm.kick_vcpu(99);
    assert_ne!(machine.vm.signals[1].pending() & signal::UNHALT, 0);
    assert!(lapic.take_unhalted() && !lapic.take_unhalted());
}
