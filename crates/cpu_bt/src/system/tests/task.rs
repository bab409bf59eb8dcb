//! Hardware task switches.

use super::machine::{selector::*, *};
use crate::fault::Fault;
use crate::regs::{RAX, RIP, RSP};
use x86::Vector;
use x86::reg::{cr0, rflags};
use x86::state::seg;

/// JMP and CALL selector:0.
fn far(opcode: u8, selector: u16) -> [u8; 7] {
    let [low, high] = selector.to_le_bytes();
    [opcode, 0, 0, 0, 0, low, high]
}

/// A protected-mode machine whose second TSS describes a kernel task, or a user one.
fn machine(cpl: u8, code: u16, data: u16) -> Machine {
    let mut machine = Machine::new(Start::Protected { cpl });
    machine.cpu.regs.r[RAX] = 0xaaaa;
    // The first TSS is in use.
    machine.store::<u8>(GDT + TSS as u64 + 5, 0x8b);
    let tss = TSS2_BASE;
    machine.store(tss + 0x20, GATE as u32);
    machine.store(tss + 0x24, (rflags::FIXED | rflags::CF) as u32);
    machine.store(tss + 0x28, 0xbbbbu32);
    machine.store(tss + 0x38, STACK0 as u32);
    for (offset, selector) in [(0x48, data), (0x4c, code), (0x50, data), (0x54, data), (0x58, 0), (0x5c, 0)] {
        machine.store(tss + offset, selector);
    }
    machine
}

#[test]
fn a_jump_replaces_the_task() {
    for target in [TSS2, TASK_GATE] {
        let mut machine = machine(0, CODE32, DATA32);
        machine.run(&far(0xea, target)).unwrap();
        let cpu = &machine.cpu;
        assert!(cpu.pending_exception.is_none());
        assert_eq!((cpu.regs.r[RIP], cpu.regs.r[RAX], cpu.regs.r[RSP]), (GATE, 0xbbbb, STACK0));
        assert_eq!(cpu.regs.rflags, rflags::FIXED | rflags::CF);
        assert_eq!((cpu.sys.tr.selector, cpu.sys.tr.base), (TSS2, TSS2_BASE));
        assert_ne!(cpu.sys.cr0 & cr0::TS, 0);
        // The old task is saved and free again, the new one is busy.
        let old = TSS_BASE;
        assert_eq!(
            (machine.load::<u32>(old + 0x20), machine.load::<u32>(old + 0x28)),
            (CODE as u32 + 7, 0xaaaa)
        );
        assert_eq!(machine.load::<u16>(old + 0x4c), CODE32);
        let rights = |selector: u16| machine.load::<u8>(GDT + selector as u64 + 5);
        assert_eq!((rights(TSS), rights(TSS2)), (0x89, 0x8b));
    }
}

#[test]
fn a_call_nests_and_iret_returns() {
    let mut machine = machine(0, CODE32, DATA32);
    machine.run(&far(0x9a, TSS2)).unwrap();
    assert!(machine.cpu.regs.flag(rflags::NT));
    assert_eq!(machine.load::<u16>(TSS2_BASE), TSS);
    let rights = |machine: &Machine, selector: u16| machine.load::<u8>(GDT + selector as u64 + 5);
    assert_eq!((rights(&machine, TSS), rights(&machine, TSS2)), (0x8b, 0x8b));
    machine.run(&[0xcf]).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.r[RIP], cpu.regs.r[RAX], cpu.sys.tr.selector), (CODE + 7, 0xaaaa, TSS));
    assert!(!cpu.regs.flag(rflags::NT));
    assert_eq!((rights(&machine, TSS), rights(&machine, TSS2)), (0x8b, 0x89));
    assert_eq!(machine.load::<u32>(TSS2_BASE + 0x24) as u64 & rflags::NT, 0);
}

#[test]
fn interrupts_through_task_gates_push_their_code_on_the_new_stack() {
    let mut machine = machine(3, CODE32, DATA32);
    machine.store(IDT + 13 * 8, gate(5, 0, TSS2, 0, 0));
    machine.raise(Fault::gp(0x18));
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.regs.r[RIP], cpu.regs.r[RSP]), (0, GATE, STACK0 - 4));
    assert!(cpu.regs.flag(rflags::NT));
    assert_eq!(machine.stack::<u32, 1>(), [0x18]);
    // The old task goes on at the instruction that faulted.
    assert_eq!(machine.load::<u32>(TSS_BASE + 0x20), CODE as u32);
}

#[test]
fn a_switch_to_user_code() {
    let mut machine = machine(0, USER_CODE32, USER_DATA);
    machine.run(&far(0xea, TSS2)).unwrap();
    assert_eq!(machine.cpu.mode.cpl, 3);
    assert_eq!(machine.cpu.regs.seg[seg::SS].selector, USER_DATA);
}

#[test]
fn bad_task_segments_fault_before_or_inside_the_new_task() {
    let busy = |machine: &mut Machine| machine.store::<u8>(GDT + TSS2 as u64 + 5, 0x8b);
    let absent = |machine: &mut Machine| machine.store::<u8>(GDT + TSS2 as u64 + 5, 0x09);
    let short = |machine: &mut Machine| machine.store::<u16>(GDT + TSS2 as u64, 0x66);
    for (spoil, expected) in [
        (busy as fn(&mut Machine), Fault::gp(TSS2)),
        (absent, Fault::with_code(Vector::SegmentNotPresent, TSS2)),
        (short, Fault::with_code(Vector::InvalidTss, TSS2)),
    ] {
        let mut machine = machine(0, CODE32, DATA32);
        spoil(&mut machine);
        assert_eq!(machine.faults(&far(0xea, TSS2)), expected);
    }
    for (offset, selector, expected) in [
        (0x4c, DATA32, Fault::with_code(Vector::InvalidTss, DATA32)),
        (0x50, 0, Fault::with_code(Vector::InvalidTss, 0)),
        (0x54, EXECUTE_ONLY, Fault::with_code(Vector::InvalidTss, EXECUTE_ONLY)),
        (0x54, ABSENT, Fault::with_code(Vector::SegmentNotPresent, ABSENT)),
        (0x60, TSS, Fault::with_code(Vector::InvalidTss, TSS)),
    ] {
        let mut machine = machine(0, CODE32, DATA32);
        machine.store(TSS2_BASE + offset, selector);
        machine.run(&far(0xea, TSS2)).unwrap();
        let pending = machine.cpu.pending_exception.map(|(fault, _)| fault);
        assert_eq!(pending, Some(expected), "{offset:#x} {selector:#x}");
        assert_eq!(machine.cpu.sys.tr.selector, TSS2);
    }
}

#[test]
fn tasks_of_16_bits() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.store::<u8>(GDT + TSS as u64 + 5, 0x8b);
    // A 16-bit TSS in place of the second one.
    machine.store(GDT + TSS2 as u64, 0x2b | TSS2_BASE << 16 | 0x81 << 40);
    let tss = TSS2_BASE;
    for (offset, value) in
        [(0x0e, 0x1234u16), (0x10, 2), (0x12, 0x5678), (0x1a, 0x7000), (0x22, DATA16), (0x24, CODE16)]
    {
        machine.store(tss + offset, value);
    }
    machine.store(tss + 0x26, DATA16);
    machine.store(tss + 0x28, DATA16);
    machine.run(&far(0x9a, TSS2)).unwrap();
    let cpu = &machine.cpu;
    assert!(cpu.pending_exception.is_none());
    assert_eq!((cpu.regs.r[RIP], cpu.regs.r[RAX] as u16, cpu.mode.code_bits), (0x1234, 0x5678, 16));
    machine.run(&[0xcf]).unwrap();
    assert_eq!(machine.cpu.regs.r[RIP], CODE + 7);
    assert_eq!(machine.load::<u16>(tss + 0x12), 0x5678);
}
