//! Segment registers, descriptor tables and what examines them.

use super::machine::{selector::*, *};
use crate::fault::Fault;
use crate::regs::{RAX, RBX, RSP};
use x86::Vector;
use x86::reg::{cr4, rflags};
use x86::segment::access;
use x86::state::{TableRegister, seg};

/// MOV to ES, SS, DS from AX.
const MOV_ES_AX: [u8; 2] = [0x8e, 0xc0];
const MOV_SS_AX: [u8; 2] = [0x8e, 0xd0];
const MOV_DS_AX: [u8; 2] = [0x8e, 0xd8];

#[test]
fn data_segments_are_checked_when_they_are_loaded() {
    let kernel = Start::Protected { cpl: 0 };
    let user = Start::Protected { cpl: 3 };
    let gp = |selector: u16| Some(Fault::gp(selector));
    for (start, code, selector, expected) in [
        (kernel, MOV_DS_AX, DATA32, None),
        (kernel, MOV_DS_AX, CODE32, None),
        (kernel, MOV_DS_AX, READ_ONLY, None),
        (kernel, MOV_DS_AX, 0, None),
        (kernel, MOV_DS_AX, 3, None),
        (kernel, MOV_DS_AX, EXECUTE_ONLY, gp(EXECUTE_ONLY)),
        (kernel, MOV_DS_AX, TSS, gp(TSS)),
        (kernel, MOV_DS_AX, DATA32 | 3, gp(DATA32)),
        (kernel, MOV_DS_AX, ABSENT, Some(Fault::with_code(Vector::SegmentNotPresent, ABSENT))),
        (kernel, MOV_DS_AX, 0x1000, gp(0x1000)),
        (kernel, MOV_DS_AX, 0x0c, gp(0x0c)),
        (user, MOV_DS_AX, USER_DATA, None),
        (user, MOV_DS_AX, DATA32, gp(DATA32)),
        (user, MOV_DS_AX, CONFORMING | 3, None),
        (user, MOV_ES_AX, 0, None),
        (kernel, MOV_SS_AX, DATA32, None),
        (kernel, MOV_SS_AX, 0, Some(Fault::GP0)),
        (kernel, MOV_SS_AX, CODE32, gp(CODE32)),
        (kernel, MOV_SS_AX, READ_ONLY, gp(READ_ONLY)),
        (kernel, MOV_SS_AX, USER_DATA, gp(USER_DATA)),
        (kernel, MOV_SS_AX, DATA32 | 3, gp(DATA32)),
        (kernel, MOV_SS_AX, ABSENT, Some(Fault::with_code(Vector::StackFault, ABSENT))),
        (user, MOV_SS_AX, DATA32, gp(DATA32)),
        (user, MOV_SS_AX, USER_DATA, None),
        (Start::Long { cpl: 0 }, MOV_SS_AX, 0, None),
        (Start::Long { cpl: 0 }, MOV_SS_AX, 3, Some(Fault::GP0)),
        (Start::Long { cpl: 3 }, MOV_SS_AX, 3, Some(Fault::GP0)),
        (Start::Compat { cpl: 0 }, MOV_SS_AX, 0, Some(Fault::GP0)),
    ] {
        let mut machine = Machine::new(start);
        machine.cpu.regs.r[RAX] = selector as u64;
        let what = format!("{start:?} {code:02x?} {selector:#x}");
        match expected {
            Some(fault) => assert_eq!(machine.faults(&code), fault, "{what}"),
            None => {
                assert_eq!(machine.run(&code), Ok(()), "{what}");
                let index = (code[1] >> 3 & 7) as usize;
                let loaded = machine.cpu.regs.seg[index];
                assert_eq!(loaded.selector, selector, "{what}");
                assert_eq!(loaded.is_unusable(), selector & !3 == 0, "{what}");
                assert_eq!(machine.cpu.shadow, index == seg::SS, "{what}");
            }
        }
    }
}

#[test]
fn loading_marks_a_descriptor_accessed() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.cpu.regs.r[RAX] = FRESH_DATA as u64;
    machine.run(&MOV_DS_AX).unwrap();
    assert_eq!(machine.load::<u8>(GDT + FRESH_DATA as u64 + 5), 0x93);
    assert!(machine.cpu.regs.seg[seg::DS].has(access::ACCESSED));
}

#[test]
fn the_local_table_is_used_once_it_is_loaded() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.regs.r[RAX] = 0x0f;
    assert_eq!(machine.faults(&MOV_DS_AX), Fault::gp(0x0f));
    machine.cpu.regs.r[RAX] = LDT as u64;
    // LLDT AX.
    machine.run(&[0x0f, 0x00, 0xd0]).unwrap();
    assert_eq!(machine.cpu.sys.ldtr.base, LDT_BASE);
    machine.cpu.regs.r[RAX] = 0x0f;
    machine.run(&MOV_DS_AX).unwrap();
    assert_eq!(machine.cpu.regs.seg[seg::DS].dpl(), 3);
    // SLDT EBX stores the selector, extended with zeroes.
    machine.cpu.regs.r[RBX] = u64::MAX;
    machine.run(&[0x0f, 0x00, 0xc3]).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], LDT as u64);
    // Null unloads it; code and TSS are no tables.
    machine.cpu.regs.r[RAX] = TSS as u64;
    assert_eq!(machine.faults(&[0x0f, 0x00, 0xd0]), Fault::gp(TSS));
    machine.cpu.regs.r[RAX] = 0;
    machine.run(&[0x0f, 0x00, 0xd0]).unwrap();
    assert!(machine.cpu.sys.ldtr.is_unusable());
}

#[test]
fn real_mode_keeps_limit_and_rights() {
    let mut machine = Machine::new(Start::Real);
    machine.cpu.regs.seg[seg::ES].limit = 0xffff_ffff;
    machine.cpu.regs.r[RAX] = 0x1234;
    machine.run(&MOV_ES_AX).unwrap();
    let es = machine.cpu.regs.seg[seg::ES];
    assert_eq!((es.base, es.limit, es.selector), (0x12340, 0xffff_ffff, 0x1234));
}

#[test]
fn pop_moves_the_pointer_by_the_operand_size() {
    // POP DS; POP FS in 64-bit mode.
    for (start, code, size) in [
        (Start::Protected { cpl: 0 }, &[0x1fu8][..], 4),
        (Start::Protected { cpl: 0 }, &[0x66, 0x1f], 2),
        (Start::Long { cpl: 0 }, &[0x0f, 0xa1], 8),
        (Start::Real, &[0x1f], 2),
    ] {
        let mut machine = Machine::new(start);
        machine.store(STACK, DATA32 as u64 | 0xabcd_0000);
        machine.run(code).unwrap();
        assert_eq!(machine.cpu.regs.r[RSP], STACK + size);
    }
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.store(STACK, TSS as u64);
    assert_eq!(machine.faults(&[0x1f]), Fault::gp(TSS));
}

#[test]
fn push_writes_the_selector() {
    // PUSH FS with 16-, 32- and 64-bit operand.
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.store(STACK - 8, u64::MAX);
    machine.run(&[0x0f, 0xa0]).unwrap();
    assert_eq!(machine.stack::<u64, 1>(), [DATA32 as u64]);
    for (vendor, upper) in [(Vendor::Intel, 0xffff_0000), (Vendor::Amd, 0)] {
        let mut machine = Machine::of(Start::Protected { cpl: 0 }, vendor);
        machine.store(STACK - 4, u32::MAX);
        machine.run(&[0x06]).unwrap();
        assert_eq!(machine.stack::<u32, 1>(), [upper | DATA32 as u32]);
        assert_eq!(machine.cpu.regs.r[RSP], STACK - 4);
    }
}

#[test]
fn far_pointers_load_both_halves_or_nothing() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.store(DATA, 0x1234_5678u32);
    machine.store(DATA + 4, USER_DATA);
    // LES EBX, [DATA].
    let les = [0xc4, 0x1d, 0x00, 0xa0, 0x00, 0x00];
    machine.run(&les).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], 0x1234_5678);
    assert_eq!(machine.cpu.regs.seg[seg::ES].selector, USER_DATA);
    machine.store(DATA + 4, TSS);
    assert_eq!(machine.faults(&les), Fault::gp(TSS));
}

#[test]
fn base_instructions_need_their_enable_and_canonical_values() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    // WRFSBASE RAX; RDFSBASE RBX.
    let write = [0xf3, 0x48, 0x0f, 0xae, 0xd0];
    assert_eq!(machine.faults(&write), Fault::UNDEFINED);
    machine.cpu.sys.cr4 |= cr4::FSGSBASE;
    machine.cpu.regs.r[RAX] = 0x0000_8000_0000_0000;
    assert_eq!(machine.faults(&write), Fault::GP0);
    machine.cpu.regs.r[RAX] = 0xffff_8000_0000_1234;
    machine.run(&write).unwrap();
    machine.run(&[0xf3, 0x48, 0x0f, 0xae, 0xc3]).unwrap();
    assert_eq!(machine.cpu.regs.r[RBX], 0xffff_8000_0000_1234);
    // SWAPGS is for the kernel.
    assert_eq!(machine.faults(&[0x0f, 0x01, 0xf8]), Fault::GP0);
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.sys.kernel_gs_base = 0x1000;
    machine.run(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!((machine.cpu.regs.seg[seg::GS].base, machine.cpu.sys.kernel_gs_base), (0x1000, 0));
}

#[test]
fn table_registers_are_loaded_and_stored() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.store(DATA, 0x0fffu16);
    machine.store(DATA + 2, 0xffff_8000_1234_5678u64);
    // LGDT [DATA]; SGDT [DATA + 16], by absolute address.
    machine.run(&[0x0f, 0x01, 0x14, 0x25, 0x00, 0xa0, 0x00, 0x00]).unwrap();
    assert_eq!(machine.cpu.sys.gdtr, TableRegister { base: 0xffff_8000_1234_5678, limit: 0xfff });
    machine.run(&[0x0f, 0x01, 0x04, 0x25, 0x10, 0xa0, 0x00, 0x00]).unwrap();
    assert_eq!(machine.load::<u64>(DATA + 18), 0xffff_8000_1234_5678);
    machine.store(DATA + 2, 0x0000_8000_0000_0000u64);
    assert_eq!(machine.faults(&[0x0f, 0x01, 0x1c, 0x25, 0x00, 0xa0, 0x00, 0x00]), Fault::GP0);

    // Real mode with a 16-bit operand takes 24 bits of the base.
    let mut machine = Machine::new(Start::Real);
    machine.store(DATA, 0x03ffu16);
    machine.store(DATA + 2, 0x1234_5678u32);
    machine.run(&[0x0f, 0x01, 0x1e, 0x00, 0xa0]).unwrap();
    assert_eq!(machine.cpu.sys.idtr, TableRegister { base: 0x34_5678, limit: 0x3ff });
}

#[test]
fn user_code_is_kept_from_tables() {
    for (start, umip, code, expected) in [
        // LGDT, LLDT, LTR are never for users; SGDT, SIDT, SLDT, STR, SMSW unless prevented.
        (3, false, &[0x0fu8, 0x01, 0x14, 0x25, 0x00, 0xa0, 0x00, 0x00][..], Some(Fault::GP0)),
        (3, false, &[0x0f, 0x00, 0xd0], Some(Fault::GP0)),
        (3, false, &[0x0f, 0x00, 0xd8], Some(Fault::GP0)),
        (3, false, &[0x0f, 0x01, 0x04, 0x25, 0x00, 0xa0, 0x00, 0x00], None),
        (3, false, &[0x0f, 0x00, 0xc0], None),
        (3, true, &[0x0f, 0x01, 0x04, 0x25, 0x00, 0xa0, 0x00, 0x00], Some(Fault::GP0)),
        (3, true, &[0x0f, 0x01, 0x0c, 0x25, 0x00, 0xa0, 0x00, 0x00], Some(Fault::GP0)),
        (3, true, &[0x0f, 0x00, 0xc0], Some(Fault::GP0)),
        (3, true, &[0x0f, 0x00, 0xc8], Some(Fault::GP0)),
        (3, true, &[0x0f, 0x01, 0xe0], Some(Fault::GP0)),
        (0, true, &[0x0f, 0x01, 0xe0], None),
    ] {
        let mut machine = Machine::new(Start::Long { cpl: start });
        if umip {
            machine.cpu.sys.cr4 |= cr4::UMIP;
        }
        assert_eq!(machine.run(code).err(), expected, "{code:02x?} at {start}, UMIP {umip}");
    }
    // Real mode knows neither LDT nor TSS.
    let mut machine = Machine::new(Start::Real);
    for code in [[0x0f, 0x00, 0xc0], [0x0f, 0x00, 0xd0], [0x0f, 0x00, 0xd8], [0x0f, 0x00, 0xe0]] {
        assert_eq!(machine.faults(&code), Fault::UNDEFINED);
    }
}

#[test]
fn the_task_register_marks_its_segment_busy() {
    // LTR AX.
    let ltr = [0x0f, 0x00, 0xd8];
    for start in [Start::Protected { cpl: 0 }, Start::Long { cpl: 0 }] {
        let mut machine = Machine::new(start);
        machine.cpu.regs.r[RAX] = TSS as u64;
        machine.run(&ltr).unwrap();
        assert_eq!(machine.load::<u8>(GDT + TSS as u64 + 5), 0x8b);
        assert_eq!((machine.cpu.sys.tr.base, machine.cpu.sys.tr.kind()), (TSS_BASE, 11));
        assert_eq!(machine.faults(&ltr), Fault::gp(TSS), "busy");
        machine.cpu.regs.r[RAX] = 0;
        assert_eq!(machine.faults(&ltr), Fault::GP0);
    }
}

#[test]
fn rights_and_limits_are_shown_to_who_may_see_them() {
    let user = Start::Long { cpl: 3 };
    let kernel = Start::Long { cpl: 0 };
    for (start, selector, rights, limit) in [
        (kernel, DATA32, Some(0x00c0_9300), Some(0xffff_ffff)),
        (kernel, TSS, Some(0x0000_8900), Some(TSS_LIMIT)),
        (kernel, LDT, Some(0x0000_8200), Some(0xff)),
        (kernel, CALL_GATE, Some(0x0000_ec00), None),
        (kernel, 0, None, None),
        (kernel, 0x1000, None, None),
        (user, DATA32, None, None),
        (user, USER_DATA, Some(0x00c0_f300), Some(0xffff_ffff)),
        (user, CONFORMING, Some(0x00a0_9f00), Some(0xffff_ffff)),
    ] {
        let what = format!("{start:?} {selector:#x}");
        for (code, expected) in [([0x0f, 0x02, 0xd8], rights), ([0x0f, 0x03, 0xd8], limit)] {
            let mut machine = Machine::new(start);
            machine.cpu.regs.r[RAX] = selector as u64;
            machine.cpu.regs.r[RBX] = 0x5555;
            machine.run(&code).unwrap();
            assert_eq!(machine.cpu.regs.flag(rflags::ZF), expected.is_some(), "{what}");
            assert_eq!(machine.cpu.regs.r[RBX], expected.unwrap_or(0x5555), "{what}");
        }
    }
}

#[test]
fn segments_are_verified_for_reading_and_writing() {
    for (cpl, selector, readable, writable) in [
        (0, DATA32, true, true),
        (0, READ_ONLY, true, false),
        (0, CODE32, true, false),
        (0, EXECUTE_ONLY, false, false),
        (0, TSS, false, false),
        (3, DATA32, false, false),
        (3, USER_DATA, true, true),
    ] {
        let mut machine = Machine::new(Start::Protected { cpl });
        machine.cpu.regs.r[RAX] = selector as u64;
        // VERR AX; VERW AX.
        machine.run(&[0x0f, 0x00, 0xe0]).unwrap();
        assert_eq!(machine.cpu.regs.flag(rflags::ZF), readable, "{cpl} {selector:#x}");
        machine.run(&[0x0f, 0x00, 0xe8]).unwrap();
        assert_eq!(machine.cpu.regs.flag(rflags::ZF), writable, "{cpl} {selector:#x}");
    }
}

#[test]
fn arpl_raises_the_requested_level() {
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    for (to, from, expected, zf) in [(0x10, 3, 0x13, true), (0x13, 1, 0x13, false), (0x11, 2, 0x12, true)] {
        machine.cpu.regs.r[RAX] = 0xaaaa_0000 | to;
        machine.cpu.regs.r[RBX] = from;
        // ARPL AX, BX.
        machine.run(&[0x63, 0xd8]).unwrap();
        assert_eq!(machine.cpu.regs.r[RAX], 0xaaaa_0000 | expected);
        assert_eq!(machine.cpu.regs.flag(rflags::ZF), zf);
    }
    assert_eq!(Machine::new(Start::Real).faults(&[0x63, 0xd8]), Fault::UNDEFINED);
}
