//! The timer.

use super::*;

const DIVIDE_BY_128: u32 = 0xa;

#[test]
fn a_one_shot_fires_once() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, 0x70);
    machine.write(0, reg::TIMER_DIVIDE, DIVIDE_BY_1);
    machine.write(0, reg::TIMER_INITIAL, 3_000_000);
    machine.wait(0, signal::INTERRUPT);
    assert_eq!(machine.next(0), Some(0x70));
    assert_eq!(machine.read(0, reg::TIMER_CURRENT), 0);
    assert_eq!(machine.read(0, reg::TIMER_INITIAL), 3_000_000);
    machine.write(0, reg::EOI, 0);
    machine.vm.lapics[0].clock_changed();
    assert_eq!(machine.next(0), None);
}

#[test]
fn a_periodic_timer_fires_again_and_again_and_never_early() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, TIMER_PERIODIC | 0x70);
    machine.write(0, reg::TIMER_DIVIDE, DIVIDE_BY_1);
    let start = machine.now();
    machine.write(0, reg::TIMER_INITIAL, 2_000_000);
    for nth in 1..=4 {
        machine.wait(0, signal::INTERRUPT);
        assert!(machine.now() >= start + nth * 2_000_000);
        assert_eq!(machine.next(0), Some(0x70));
        machine.write(0, reg::EOI, 0);
    }
    machine.write(0, reg::TIMER_INITIAL, 0);
    assert_eq!(machine.vm.lapics[0].timer.lock().unwrap().deadline, None);
}

#[test]
fn the_count_goes_down_by_the_divided_clock() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, 0x70);
    machine.write(0, reg::TIMER_DIVIDE, DIVIDE_BY_128);
    machine.write(0, reg::TIMER_INITIAL, u32::MAX);
    let (before, first) = (machine.now(), machine.read(0, reg::TIMER_CURRENT));
    std::thread::sleep(Duration::from_millis(3));
    let (second, after) = (machine.read(0, reg::TIMER_CURRENT), machine.now());
    let passed = (first - second) as u64 * 128;
    assert!(passed >= 2_900_000 && passed <= after - before + 256, "{passed}");
    // The count goes on from where it is at another speed.
    machine.write(0, reg::TIMER_DIVIDE, DIVIDE_BY_1);
    let third = machine.read(0, reg::TIMER_CURRENT);
    assert!(third <= second && third > second / 2);
    for (divide, shift) in [(0, 1), (1, 2), (2, 3), (3, 4), (8, 5), (9, 6), (0xa, 7), (0xb, 0)] {
        machine.write(0, reg::TIMER_DIVIDE, divide);
        machine.write(0, reg::TIMER_INITIAL, u32::MAX);
        let state = machine.vm.lapics[0].timer.lock().unwrap();
        assert_eq!(state.deadline, Some(state.start + ((u32::MAX as u64) << shift)));
    }
}

#[test]
fn a_masked_timer_counts_in_silence() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, LVT_MASKED | 0x70);
    machine.write(0, reg::TIMER_INITIAL, 10_000);
    let start = Instant::now();
    while machine.read(0, reg::TIMER_CURRENT) != 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    machine.vm.lapics[0].clock_changed();
    assert_eq!(machine.next(0), None);
}

#[test]
fn a_tsc_deadline_that_is_past_fires_at_once() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    machine.signalled(signal::INTERRUPT);
    machine.wrmsr(0, msr::TSC_DEADLINE, 1);
    assert_ne!(machine.pending(0) & signal::INTERRUPT, 0);
    assert_eq!(machine.next(0), Some(0x70));
    machine.write(0, reg::EOI, 0);
    let deadline =
        |machine: &mut Machine| machine.with(0, |cpu| cpu.lapic_read_msr(msr::TSC_DEADLINE)).unwrap();
    assert_eq!(deadline(&mut machine), 0, "disarmed by firing");
    let at = machine.vm.clock.tsc() + machine.vm.clock.tsc_hz() / 500;
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    machine.wait(0, signal::INTERRUPT);
    assert!(machine.vm.clock.tsc() >= at);
    assert_eq!(machine.next(0), Some(0x70));
    machine.write(0, reg::EOI, 0);
    machine.wrmsr(0, msr::TSC_DEADLINE, u64::MAX);
    assert_eq!(deadline(&mut machine), u64::MAX);
    machine.wrmsr(0, msr::TSC_DEADLINE, 0);
    assert_eq!(deadline(&mut machine), 0);
    assert_eq!(machine.next(0), None);
}

#[test]
fn the_timers_modes_exclude_each_other() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, 0x70);
    machine.wrmsr(0, msr::TSC_DEADLINE, 1);
    assert_eq!(machine.next(0), None, "not in this mode");
    machine.write(0, reg::TIMER_INITIAL, u32::MAX);
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    assert_eq!((machine.read(0, reg::TIMER_INITIAL), machine.read(0, reg::TIMER_CURRENT)), (0, 0));
    machine.write(0, reg::TIMER_INITIAL, 5);
    assert_eq!(machine.read(0, reg::TIMER_INITIAL), 0);
    let far = machine.vm.clock.ns_to_tsc(machine.now() + FAR);
    machine.wrmsr(0, msr::TSC_DEADLINE, far);
    machine.write(0, reg::LVT_TIMER, TIMER_PERIODIC | 0x70);
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    assert_eq!(machine.with(0, |cpu| cpu.lapic_read_msr(msr::TSC_DEADLINE)).unwrap(), 0);
    assert_eq!(machine.next(0), None);
}

#[test]
fn a_deadline_follows_the_vcpus_own_tsc() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    let ahead = machine.vm.clock.ns_to_tsc(FAR);
    let at = machine.vm.clock.tsc() + ahead / 2;
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    assert_eq!(machine.next(0), None);
    machine.with(0, |cpu| {
        cpu.sys.tsc_adjust = ahead;
        cpu.tsc_adjust_changed();
    });
    assert_eq!(machine.next(0), Some(0x70));
    machine.write(0, reg::EOI, 0);
    // Now the same value is past.
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    assert_eq!(machine.next(0), Some(0x70));
}

#[test]
fn a_sleeping_vcpu_looks_after_its_timer_itself() {
    let mut machine = Machine::new(1);
    let lapic = machine.vm.lapics[0].clone();
    assert_eq!(lapic.sleep_begins(), None);
    lapic.sleep_ends();
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    machine.signalled(signal::INTERRUPT);
    let start = machine.now();
    let at = machine.vm.clock.ns_to_tsc(start + 4_000_000);
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    let timeout = lapic.sleep_begins().expect("there is a deadline");
    assert!(timeout <= 4_000_001);
    // The alarm rings into the void.
    lapic.alarm_rang();
    while machine.now() < start + 4_000_002 {
        std::thread::yield_now();
    }
    lapic.alarm_rang();
    assert_eq!(machine.pending(0), 0);
    lapic.sleep_ends();
    assert_eq!(machine.next(0), Some(0x70));
    machine.write(0, reg::EOI, 0);
    // Woken early by something else, it gives the deadline back to the alarm.
    let at = machine.vm.clock.ns_to_tsc(machine.now() + 4_000_000);
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    lapic.sleep_begins();
    lapic.alarm_rang();
    lapic.sleep_ends();
    machine.wait(0, signal::INTERRUPT);
    assert_eq!(machine.next(0), Some(0x70));
    // Masked, it is no reason to wake up.
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | LVT_MASKED | 0x70);
    let far = machine.vm.clock.ns_to_tsc(machine.now() + FAR);
    machine.wrmsr(0, msr::TSC_DEADLINE, far);
    assert_eq!(lapic.sleep_begins(), None);
}

#[test]
fn the_alarm_follows_the_deadline_of_a_sleeping_vcpu() {
    let mut machine = Machine::new(1);
    let lapic = machine.vm.lapics[0].clone();
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    let far = machine.now() + FAR;
    let at = machine.vm.clock.ns_to_tsc(far);
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    let exact = lapic.alarm.deadline().expect("it is armed");
    lapic.sleep_begins();
    lapic.alarm_rang();
    let after = lapic.alarm.deadline().expect("it is armed again");
    assert!(after > exact, "{after} {exact}");
    // The next one is set before it rings: it follows by itself.
    let at = machine.vm.clock.ns_to_tsc(far + FAR);
    machine.wrmsr(0, msr::TSC_DEADLINE, at);
    assert_eq!(lapic.alarm.deadline(), Some(after));
    lapic.alarm_rang();
    assert!(lapic.alarm.deadline() > Some(after + FAR / 2));
    // Awake, the vCPU relies on it.
    lapic.sleep_ends();
    let awake = lapic.alarm.deadline().expect("it is armed");
    assert!(awake.abs_diff(exact + FAR) < FAR / 1000, "{awake} {exact}");
}

#[test]
fn moving_a_deadline_to_later_leaves_the_alarm_alone() {
    let mut machine = Machine::new(1);
    let lapic = machine.vm.lapics[0].clone();
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    let arm = |machine: &mut Machine, ns: Nanos| {
        let tsc = machine.vm.clock.ns_to_tsc(ns);
        machine.wrmsr(0, msr::TSC_DEADLINE, tsc);
        lapic.alarm.deadline().expect("the alarm is set")
    };
    let start = machine.now();
    let first = arm(&mut machine, start + FAR);
    assert!(first >= start + FAR);
    assert_eq!(arm(&mut machine, start + 2 * FAR), first);
    let earlier = arm(&mut machine, start + FAR / 2);
    assert!(earlier < first && earlier >= start + FAR / 2);
    machine.wrmsr(0, msr::TSC_DEADLINE, 0);
    assert_eq!(arm(&mut machine, start + FAR), earlier);
    // When it rings it moves itself.
    lapic.alarm_rang();
    assert!(lapic.alarm.deadline().unwrap() >= start + FAR);
    assert_eq!(machine.next(0), None);
}

#[test]
fn a_regular_tick_finds_its_alarm_set() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, TIMER_TSC_DEADLINE | 0x70);
    let lapic = machine.vm.lapics[0].clone();
    const PERIOD: Nanos = 1_000_000;
    let mut at = machine.now() + PERIOD;
    let mut found = false;
    // A loaded host may delay single ticks; some time two in a row are in time.
    for _ in 0..500 {
        let tsc = machine.vm.clock.ns_to_tsc(at);
        machine.wrmsr(0, msr::TSC_DEADLINE, tsc);
        machine.wait(0, signal::INTERRUPT);
        assert_eq!(machine.next(0), Some(0x70));
        machine.write(0, reg::EOI, 0);
        if lapic.alarm.deadline().is_some_and(|alarm| alarm.abs_diff(at + PERIOD) < 10) {
            found = true;
            break;
        }
        at += PERIOD;
    }
    assert!(found);
}

#[test]
fn no_timer_fires_while_time_stands_still() {
    let mut machine = Machine::new(1);
    machine.write(0, reg::LVT_TIMER, 0x70);
    machine.write(0, reg::TIMER_DIVIDE, DIVIDE_BY_1);
    machine.signalled(signal::INTERRUPT);
    machine.vm.clock.pause();
    machine.write(0, reg::TIMER_INITIAL, 1);
    assert_eq!(machine.vm.lapics[0].sleep_begins(), None);
    machine.vm.lapics[0].sleep_ends();
    machine.vm.lapics[0].clock_changed();
    assert_eq!(machine.pending(0), 0);
    machine.vm.clock.resume();
    machine.vm.timers.clock_changed();
    machine.vm.lapics[0].clock_changed();
    machine.wait(0, signal::INTERRUPT);
    assert_eq!(machine.next(0), Some(0x70));
}
