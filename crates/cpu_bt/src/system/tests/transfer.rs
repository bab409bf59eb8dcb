//! Far jumps, calls and returns.

use super::machine::{selector::*, *};
use crate::fault::Fault;
use crate::regs::{RAX, RIP, RSP};
use x86::Vector;
use x86::segment::access;
use x86::state::seg;

/// JMP or CALL selector:offset with a 32-bit operand.
fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend(offset.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

#[test]
fn direct_transfers_check_privilege() {
    let np = |selector| Fault::with_code(Vector::SegmentNotPresent, selector);
    for (cpl, selector, expected) in [
        (0, CODE32, None),
        (0, CONFORMING, None),
        (3, CONFORMING, None),
        (3, USER_CODE32, None),
        (3, CODE32, Some(Fault::gp(CODE32))),
        (0, USER_CODE32, Some(Fault::gp(USER_CODE32))),
        (0, CODE32 | 3, Some(Fault::gp(CODE32))),
        (0, DATA32, Some(Fault::gp(DATA32))),
        (0, 0, Some(Fault::GP0)),
        (0, ABSENT_CODE, Some(np(ABSENT_CODE))),
        (0, LDT, Some(Fault::gp(LDT))),
        (0, 0x1000, Some(Fault::gp(0x1000))),
    ] {
        for opcode in [JMP, CALL] {
            let mut machine = Machine::new(Start::Protected { cpl });
            let code = far(opcode, selector, GATE as u32 + 0x234);
            match expected {
                Some(fault) => assert_eq!(machine.faults(&code), fault, "{opcode:#x} {selector:#x}"),
                None => {
                    let before = machine.cpu.regs.seg[seg::CS].selector as u32;
                    machine.run(&code).unwrap();
                    let cs = machine.cpu.regs.seg[seg::CS];
                    assert_eq!(cs.selector, selector & !3 | cpl as u16);
                    assert_eq!((machine.cpu.regs.r[RIP], machine.cpu.mode.cpl), (GATE + 0x234, cpl));
                    if opcode == CALL {
                        assert_eq!(machine.stack::<u32, 2>(), [CODE as u32 + 7, before]);
                        // RETF goes back.
                        machine.run(&[0xcb]).unwrap();
                        assert_eq!((machine.cpu.regs.r[RIP], machine.cpu.regs.r[RSP]), (CODE + 7, STACK));
                    }
                }
            }
        }
    }
}

#[test]
fn a_target_outside_the_segment_is_refused() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    assert_eq!(machine.faults(&far(JMP, CODE16, 0x1_0000)), Fault::GP0);
    machine.run(&far(JMP, CODE16, 0x8000)).unwrap();
    assert_eq!(machine.cpu.mode.code_bits, 16);
    let mut machine = Machine::new(Start::Real);
    // A 32-bit far jump in real mode.
    assert_eq!(machine.faults(&[0x66, 0xea, 0, 0, 1, 0, 0, 0]), Fault::GP0);
    machine.run(&[0xea, 0x34, 0x12, 0x00, 0x20]).unwrap();
    assert_eq!((machine.cpu.regs.seg[seg::CS].base, machine.cpu.regs.r[RIP]), (0x20000, 0x1234));
}

#[test]
fn protected_mode_begins_with_a_far_jump() {
    let mut machine = Machine::new(Start::Real);
    machine.cpu.sys.gdtr = x86::state::TableRegister { base: GDT, limit: GDT_LIMIT };
    machine.cpu.regs.r[RAX] = 1;
    machine.run(&[0x0f, 0x22, 0xc0]).unwrap();
    assert_eq!((machine.cpu.mode.protected, machine.cpu.mode.code_bits), (true, 16));
    machine.run(&[0x66, 0xea, 0x00, 0x00, 0x03, 0x00, CODE32 as u8, 0]).unwrap();
    assert_eq!((machine.cpu.mode.code_bits, machine.cpu.regs.r[RIP]), (32, GATE));
}

#[test]
fn call_gates_raise_privilege_and_copy_parameters() {
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    machine.store(GDT + (CALL_GATE & !7) as u64, gate(12, 3, CODE32, GATE, 2));
    machine.cpu.regs.r[RSP] = STACK - 8;
    machine.store(STACK - 8, 0x1111_1111u32);
    machine.store(STACK - 4, 0x2222_2222u32);
    machine.run(&far(CALL, CALL_GATE, 0xdead)).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.regs.r[RIP], cpu.regs.r[RSP]), (0, GATE, STACK0 - 24));
    assert_eq!((cpu.regs.seg[seg::CS].selector, cpu.regs.seg[seg::SS].selector), (CODE32, DATA32));
    let frame =
        [CODE as u32 + 7, USER_CODE32 as u32, 0x1111_1111, 0x2222_2222, STACK as u32 - 8, USER_DATA as u32];
    assert_eq!(machine.stack::<u32, 6>(), frame);
    // RETF 8 releases the parameters on both stacks.
    machine.run(&[0xca, 8, 0]).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.regs.r[RIP], cpu.regs.r[RSP]), (3, CODE + 7, STACK));
    assert_eq!(cpu.regs.seg[seg::SS].selector, USER_DATA);

    // A jump through the gate cannot raise privilege; a gate of the kernel cannot be used by the user.
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    assert_eq!(machine.faults(&far(JMP, CALL_GATE, 0)), Fault::gp(CODE32));
    machine.store(GDT + 0x78, gate(12, 0, CODE32, GATE, 0));
    assert_eq!(machine.faults(&far(CALL, CALL_GATE, 0)), Fault::gp(0x78));
    machine.store(GDT + 0x78, gate(12, 3, CODE32, GATE, 0) & !(0x80 << 40));
    let absent = Fault::with_code(Vector::SegmentNotPresent, 0x78);
    assert_eq!(machine.faults(&far(CALL, CALL_GATE, 0)), absent);
}

#[test]
fn gates_of_long_mode_push_quadwords() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.store(DATA, 0u32);
    machine.store(DATA + 4, CALL_GATE);
    // CALL FAR [DATA].
    let call = [0xff, 0x1c, 0x25, 0x00, 0xa0, 0x00, 0x00];
    machine.run(&call).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.regs.r[RIP], cpu.regs.r[RSP]), (0, GATE, STACK0 - 32));
    assert!(cpu.regs.seg[seg::SS].is_unusable());
    assert_eq!(machine.stack::<u64, 4>(), [CODE + 7, USER_CODE64 as u64, STACK, USER_DATA as u64]);
    // RETFQ.
    machine.run(&[0x48, 0xcb]).unwrap();
    assert_eq!((machine.cpu.mode.cpl, machine.cpu.regs.r[RSP]), (3, STACK));
    // Task gates and 16-bit gates are none in long mode.
    for kind in [4, 5] {
        machine.store(GDT + 0x78, gate(kind, 3, CODE64, GATE, 0));
        assert_eq!(machine.faults(&call), Fault::gp(0x78));
    }
}

#[test]
fn far_pointers_of_64_bits_are_intels() {
    for (vendor, expected) in [(Vendor::Intel, 0xffff_8000_0003_0000u64), (Vendor::Amd, GATE)] {
        let mut machine = Machine::of(Start::Long { cpl: 0 }, vendor);
        match vendor {
            Vendor::Intel => {
                machine.store(DATA, expected);
                machine.store(DATA + 8, CODE64);
            }
            Vendor::Amd => {
                machine.store(DATA, expected as u32);
                machine.store(DATA + 4, CODE64);
            }
        }
        // JMP FAR [DATA] with REX.W.
        machine.run(&[0x48, 0xff, 0x2c, 0x25, 0x00, 0xa0, 0x00, 0x00]).unwrap();
        assert_eq!(machine.cpu.regs.r[RIP], expected);
    }
}

#[test]
fn segment_pointers_of_64_bits_are_intels() {
    for (vendor, expected) in [(Vendor::Intel, 0x1111_0000_0000_7788u64), (Vendor::Amd, 0x7788)] {
        let mut machine = Machine::of(Start::Long { cpl: 0 }, vendor);
        machine.store(DATA, 0x1111_0000_0000_7788u64);
        machine.store(DATA + 8, 0u16);
        // LGS RAX, [DATA].
        machine.run(&[0x48, 0x0f, 0xb5, 0x04, 0x25, 0x00, 0xa0, 0x00, 0x00]).unwrap();
        assert_eq!(machine.cpu.regs.r[RAX], expected);
    }
}

#[test]
fn a_far_jump_changes_between_64_and_32_bit_code() {
    let mut machine = Machine::new(Start::Compat { cpl: 0 });
    machine.run(&far(JMP, CODE64, CODE as u32)).unwrap();
    assert_eq!(machine.cpu.mode.code_bits, 64);
    assert!(machine.cpu.regs.seg[seg::CS].has(access::LONG));
    machine.store(STACK, CODE + 0x100);
    machine.store(STACK + 8, CODE32 as u64);
    machine.run(&[0x48, 0xcb]).unwrap();
    assert_eq!((machine.cpu.mode.code_bits, machine.cpu.regs.r[RIP]), (32, CODE + 0x100));
    // A code segment cannot be both.
    machine.store(GDT + CODE32 as u64, 0x00ef_9b00_0000_ffffu64);
    assert_eq!(machine.faults(&far(JMP, CODE32, 0)), Fault::gp(CODE32));
}

#[test]
fn returns_cannot_raise_privilege() {
    for (selector, ss, expected) in [
        (CODE32, USER_DATA, Fault::gp(CODE32)),
        (0, USER_DATA, Fault::GP0),
        (USER_DATA, USER_DATA, Fault::gp(USER_DATA)),
    ] {
        let mut machine = Machine::new(Start::Protected { cpl: 3 });
        for (index, value) in [CODE as u32, selector as u32, STACK as u32, ss as u32].into_iter().enumerate()
        {
            machine.store(STACK + 4 * index as u64, value);
        }
        assert_eq!(machine.faults(&[0xcb]), expected);
    }
    // To user code the stack segment has to be the user's.
    for (ss, expected) in
        [(0, Fault::GP0), (DATA32, Fault::gp(DATA32)), (USER_CODE32, Fault::gp(USER_CODE32))]
    {
        let mut machine = Machine::new(Start::Protected { cpl: 0 });
        let frame = [CODE as u32, USER_CODE32 as u32, STACK as u32, ss as u32];
        for (index, value) in frame.into_iter().enumerate() {
            machine.store(STACK + 4 * index as u64, value);
        }
        assert_eq!(machine.faults(&[0xcb]), expected);
    }
}

#[test]
fn a_call_without_room_on_the_stack_faults() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.cpu.load_segment(seg::SS, DATA16).unwrap();
    machine.cpu.shadow = false;
    machine.cpu.regs.r[RSP] = 2;
    assert_eq!(machine.faults(&far(CALL, CODE32, 0)), Fault::SS0);
    // An expand-down stack ends at its limit.
    machine.cpu.load_segment(seg::SS, EXPAND_DOWN).unwrap();
    machine.cpu.regs.r[RSP] = 0x1004;
    assert_eq!(machine.faults(&far(CALL, CODE32, 0)), Fault::SS0);
    machine.cpu.regs.r[RSP] = 0x1008;
    machine.run(&far(CALL, CODE32, GATE as u32)).unwrap();
}
