//! Saving and restoring.

use super::*;

#[test]
fn a_restored_apic_goes_on_where_the_saved_one_was() {
    for x2apic in [false, true] {
        let mut machine = Machine::new(2);
        machine.write(1, reg::LVT_TIMER, TIMER_PERIODIC | 0x70);
        machine.write(1, reg::TIMER_INITIAL, u32::MAX);
        machine.write(1, reg::TPR, 0x12);
        machine.write(1, reg::LDR, 0x0200_0000);
        for data in [0x41, 0x8061] {
            machine.vm.deliver_message(0xfee0_1000, data);
        }
        assert_eq!(machine.next(1), Some(0x61));
        if x2apic {
            machine.wrmsr(1, msr::APIC_BASE, 0xfee0_0c00);
        }
        let saved = machine.vm.lapics[1].save();
        let json = format!("{saved:?}");
        let mut other = Machine::new(2);
        let lapic = other.vm.lapics[1].clone();
        lapic.restore(&saved).unwrap();
        let again = lapic.save();
        assert_eq!(again.timer_start_ns, saved.timer_start_ns);
        for index in (0..64).filter(|index| index << 4 != reg::TIMER_CURRENT) {
            assert_eq!(again.registers[index as usize], saved.registers[index as usize], "{index:#x} {json}");
        }
        assert!(lapic.timer.lock().unwrap().deadline.is_some());
        assert_ne!(other.pending(1) & signal::INTERRUPT, 0);
        assert_eq!(other.next(1), None, "0x61 is in service");
        match x2apic {
            true => other.wrmsr(1, 0x80b, 0),
            false => other.write(1, reg::EOI, 0),
        }
        assert_eq!(*other.io.ended.lock().unwrap(), [0x61]);
        assert_eq!(other.next(1), Some(0x41));
    }
}

#[test]
fn timers_are_restored_in_every_mode() {
    let mut machine = Machine::new(1);
    let mut base_state = machine.vm.lapics[0].save();
    let now = machine.now();
    let mut restore = |mode: u32, initial: u32, current: u32, start: Nanos, tsc: u64| {
        let state = &mut base_state;
        state.registers[(reg::LVT_TIMER >> 4) as usize] = mode | 0x70;
        state.registers[(reg::TIMER_DIVIDE >> 4) as usize] = DIVIDE_BY_1;
        state.registers[(reg::TIMER_INITIAL >> 4) as usize] = initial;
        state.registers[(reg::TIMER_CURRENT >> 4) as usize] = current;
        (state.timer_start_ns, state.tsc_deadline) = (start, tsc);
        machine.vm.lapics[0].restore(state).unwrap();
        let deadline = machine.vm.lapics[0].timer.lock().unwrap().deadline;
        let fired = machine.next(0);
        machine.write(0, reg::EOI, 0);
        (deadline, fired)
    };
    let far = u32::MAX;
    assert_eq!(restore(0, 0, 0, now, 0), (None, None));
    assert_eq!(restore(0, far, far / 2, now, 0), (Some(now + far as u64), None));
    assert_eq!(restore(0, 5, 0, 1, 0), (None, None), "had expired before");
    assert_eq!(restore(0, 5, 5, 1, 0), (None, Some(0x70)), "expired meanwhile");
    let (deadline, fired) = restore(TIMER_PERIODIC, far, 1, 77, 0);
    assert_eq!((deadline, fired), (Some(77 + far as u64), None));
    assert_eq!(restore(TIMER_TSC_DEADLINE, 0, 0, 0, 0), (None, None));
    assert_eq!(restore(TIMER_TSC_DEADLINE, 0, 0, 0, 1), (None, Some(0x70)));
    let (deadline, fired) = restore(TIMER_TSC_DEADLINE, 0, 0, 0, u64::MAX);
    assert!(deadline.is_some() && fired.is_none());
    // Nonsense is harmless.
    assert_eq!(restore(0, far, 1, u64::MAX, 0), (Some(u64::MAX), None));
    let (deadline, _) = restore(TIMER_PERIODIC, 1, 1, u64::MAX, 0);
    assert_eq!(deadline, Some(u64::MAX));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut machine = Machine::new(2);
    let good = machine.vm.lapics[1].save();
    type Change = fn(&mut LapicState);
    let changes: [(&str, Change); 14] = [
        ("IA32_APIC_BASE", |s| s.base = 0x400),
        ("IA32_APIC_BASE", |s| s.base = u64::MAX),
        ("registers instead of", |s| s.registers.truncate(63)),
        ("registers instead of", |s| s.registers.push(0)),
        ("ID", |s| s.registers[2] = 0),
        ("ID", |s| s.base |= base::X2APIC),
        ("version", |s| s.registers[3] = 0),
        ("0x80", |s| s.registers[8] = 0x100),
        ("0xf0", |s| s.registers[15] = 0x1000),
        ("0x200", |s| s.registers[0x20] = 1),
        ("0x100", |s| s.registers[0x10] = 0x8000),
        ("0x320", |s| s.registers[0x32] = 0x8_0000),
        ("0x3f0", |s| s.registers[0x3f] = 1),
        ("0x300", |s| s.registers[0x30] = ICR_BUSY),
    ];
    for (why, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let refused = machine.vm.lapics[1].restore(&bad).expect_err(why);
        assert!(refused.contains(why), "{refused:?} does not say {why:?}");
        assert_eq!(machine.vm.lapics[1].save(), good);
    }
    machine.write(1, reg::TPR, 1);
    machine.vm.lapics[1].restore(&good).unwrap();
    assert_eq!(machine.vm.lapics[1].save(), good);
}
