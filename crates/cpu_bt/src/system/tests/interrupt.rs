//! Delivery of exceptions and interrupts, and IRET.

use super::machine::{selector::*, *};
use crate::fault::Fault;
use crate::regs::{RIP, RSP};
use ::cpu::VmExit;
use x86::Vector;
use x86::reg::{dr6, dr7, rflags};
use x86::segment::access;
use x86::state::seg;

const HANDLER_13: u64 = HANDLERS + 13 * 16;
const IRETQ: [u8; 2] = [0x48, 0xcf];
const IRETD: [u8; 1] = [0xcf];

#[test]
fn a_fault_in_user_code_enters_the_kernel_with_its_stack() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.cpu.regs.rflags |= rflags::IF | rflags::TF | rflags::NT;
    machine.raise(Fault::gp(0x18));
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.r[RIP], cpu.mode.cpl, cpu.mode.code_bits), (HANDLER_13, 0, 64));
    // 16-byte alignment, five values and the error code.
    assert_eq!(cpu.regs.r[RSP], STACK0 - 48);
    assert_eq!(cpu.regs.seg[seg::CS].selector, CODE64);
    assert_eq!((cpu.regs.seg[seg::SS].selector, cpu.regs.seg[seg::SS].is_unusable()), (0, true));
    assert_eq!(cpu.regs.rflags, rflags::FIXED);
    let flags = rflags::FIXED | rflags::IF | rflags::TF | rflags::NT | rflags::RF;
    let frame = [0x18, CODE, USER_CODE64 as u64, flags, STACK, USER_DATA as u64];
    assert_eq!(machine.stack::<u64, 6>(), frame);

    // And back.
    machine.cpu.regs.r[RSP] += 8;
    machine.cpu.regs.rflags &= !rflags::NT;
    machine.run(&IRETQ).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.r[RIP], cpu.regs.r[RSP], cpu.mode.cpl), (CODE, STACK, 3));
    assert_eq!(cpu.regs.rflags, flags & !rflags::RF);
    assert_eq!(cpu.regs.seg[seg::SS].selector, USER_DATA);
}

#[test]
fn interrupts_at_the_same_level_align_the_stack() {
    for (start, top) in [(STACK, STACK - 40), (STACK - 4, STACK - 16 - 40), (STACK + 8, STACK - 40)] {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        machine.cpu.regs.r[RSP] = start;
        machine.cpu.regs.rflags |= rflags::IF;
        machine.cpu.halted = true;
        machine.cpu.deliver_interrupt(0x30);
        assert_eq!(machine.cpu.regs.r[RSP], top);
        let flags = rflags::FIXED | rflags::IF;
        assert_eq!(machine.stack::<u64, 5>(), [CODE, CODE64 as u64, flags, start, DATA32 as u64]);
        assert!(!machine.cpu.halted && !machine.cpu.regs.flag(rflags::IF));
        machine.run(&IRETQ).unwrap();
        assert_eq!((machine.cpu.regs.r[RSP], machine.cpu.regs.rflags), (start, flags));
    }
}

#[test]
fn the_interrupt_stack_table_replaces_any_stack() {
    for cpl in [0, 3] {
        let mut machine = Machine::new(Start::Long { cpl });
        // Vector 2 on the first interrupt stack.
        machine.store(IDT + 32, gate(14, 0, CODE64, HANDLERS + 32, 1));
        machine.cpu.deliver_nmi();
        assert_eq!((machine.cpu.regs.r[RIP], machine.cpu.regs.r[RSP]), (HANDLERS + 32, IST1 - 40));
        assert!(machine.cpu.nmi_blocked);
        machine.run(&IRETQ).unwrap();
        assert!(!machine.cpu.nmi_blocked);
        assert_eq!((machine.cpu.mode.cpl, machine.cpu.regs.r[RSP]), (cpl, STACK));
    }
}

#[test]
fn trap_gates_keep_interrupts_enabled() {
    for (kind, expected) in [(14, 0), (15, rflags::IF)] {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        machine.store(IDT + 0x30 * 16, gate(kind, 0, CODE64, HANDLERS, 0));
        machine.cpu.regs.rflags |= rflags::IF;
        machine.cpu.deliver_interrupt(0x30);
        assert_eq!(machine.cpu.regs.rflags & rflags::IF, expected);
    }
}

#[test]
fn software_interrupts_respect_the_gates_privilege() {
    for start in [Start::Long { cpl: 3 }, Start::Protected { cpl: 3 }, Start::Compat { cpl: 3 }] {
        let mut machine = Machine::new(start);
        // INT 0x30, INT3 are for the kernel; INT 0x80 is for everybody; INT1 does not ask.
        assert_eq!(machine.faults(&[0xcd, 0x30]), Fault::with_code(Vector::GeneralProtection, 0x30 * 8 + 2));
        assert_eq!(machine.faults(&[0xcc]), Fault::with_code(Vector::GeneralProtection, 3 * 8 + 2));
        machine.run(&[0xcd, 0x80]).unwrap();
        assert_eq!((machine.cpu.mode.cpl, machine.cpu.regs.r[RIP]), (0, HANDLERS + 0x800));
        let rip = match start {
            Start::Protected { .. } => machine.stack::<u32, 1>()[0] as u64,
            _ => machine.stack::<u64, 1>()[0],
        };
        assert_eq!(rip, CODE + 2);
        let mut machine = Machine::new(start);
        machine.run(&[0xf1]).unwrap();
        assert_eq!(machine.cpu.regs.r[RIP], HANDLERS + 16);
    }
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.run(&[0xce]).unwrap();
    assert_eq!(machine.cpu.regs.r[RIP], CODE + 1, "INTO without overflow");
    machine.cpu.regs.rflags |= rflags::OF;
    machine.run(&[0xce]).unwrap();
    assert_eq!(machine.cpu.regs.r[RIP], HANDLERS + 4 * 16);
}

#[test]
fn protected_mode_switches_stacks_by_the_tss() {
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    machine.cpu.regs.rflags |= rflags::IF;
    machine.raise(Fault::gp(0x18));
    assert_eq!((machine.cpu.regs.r[RIP], machine.cpu.regs.r[RSP]), (HANDLER_13, STACK0 - 24));
    let flags = rflags::FIXED | rflags::IF | rflags::RF;
    let frame = [0x18, CODE as u32, USER_CODE32 as u32, flags as u32, STACK as u32, USER_DATA as u32];
    assert_eq!(machine.stack::<u32, 6>(), frame);
    machine.cpu.regs.r[RSP] += 4;
    machine.run(&IRETD).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.r[RIP], cpu.regs.r[RSP], cpu.mode.cpl), (CODE, STACK, 3));
    // Segments of the kernel are taken away on the way out, those of the user stay.
    assert_eq!(cpu.regs.seg[seg::DS].selector, USER_DATA);
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    machine.run(&[0xcd, 0x80]).unwrap();
    machine.cpu.load_segment(seg::DS, DATA32).unwrap();
    machine.run(&IRETD).unwrap();
    assert_eq!((machine.cpu.regs.seg[seg::DS].selector, machine.cpu.regs.seg[seg::DS].access), (0, 0));
}

#[test]
fn sixteen_bit_gates_push_words() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.store(IDT + 0x30 * 8, gate(6, 0, CODE32, 0x1234, 0));
    machine.cpu.deliver_interrupt(0x30);
    assert_eq!((machine.cpu.regs.r[RIP], machine.cpu.regs.r[RSP]), (0x1234, STACK - 6));
    assert_eq!(machine.stack::<u16, 3>(), [CODE as u16, CODE32, 2]);
}

#[test]
fn bad_gates_fault_with_their_number() {
    let code = |vector: u16| vector * 8 + 2 + 1;
    let fault = |vector, code| Fault::with_code(vector, code);
    for (low, limit, expected) in [
        // An absent gate, a data segment as gate, an absent and a 32-bit code segment, a null one.
        (gate(14, 0, CODE64, 0, 0) & !(0x80 << 40), 0xfff, fault(Vector::SegmentNotPresent, code(0x30))),
        (0x93 << 40, 0xfff, fault(Vector::GeneralProtection, code(0x30))),
        (gate(14, 0, CODE64, 0, 0), 0x30e, fault(Vector::GeneralProtection, code(0x30))),
        (gate(14, 0, CODE32, 0, 0), 0xfff, fault(Vector::GeneralProtection, CODE32 + 1)),
        (gate(14, 0, 0, 0, 0), 0xfff, fault(Vector::GeneralProtection, 1)),
        (gate(14, 0, USER_CODE64, 0, 0), 0xfff, fault(Vector::GeneralProtection, USER_CODE64 & !3 | 1)),
        (gate(5, 0, TSS2, 0, 0), 0xfff, fault(Vector::GeneralProtection, code(0x30))),
    ] {
        let mut machine = Machine::new(Start::Long { cpl: 0 });
        machine.store(IDT + 0x30 * 16, low);
        machine.cpu.sys.idtr.limit = limit;
        machine.cpu.deliver_interrupt(0x30);
        // What comes is the handler of the fault, with its error code on the stack.
        let vector = expected.vector() as u64;
        assert_eq!(machine.cpu.regs.r[RIP], HANDLERS + vector * 16, "{low:#x}");
        assert_eq!(machine.stack::<u64, 1>(), [expected.code().unwrap() as u64], "{low:#x}");
    }
}

#[test]
fn faults_during_faults_double_and_end_in_shutdown() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    let absent = gate(14, 0, CODE64, 0, 0) & !(0x80 << 40);
    // #GP whose gate is absent: #NP, which is contributory, so #DF.
    machine.store(IDT + 13 * 16, absent);
    machine.raise(Fault::GP0);
    assert_eq!(machine.cpu.regs.r[RIP], HANDLERS + 8 * 16);
    assert_eq!(machine.stack::<u64, 1>(), [0]);
    assert!(machine.cpu.exit.is_none());

    // A page fault on the handler's stack becomes a double fault too, and its address is noted.
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.store(IDT + 8 * 16, gate(14, 0, CODE64, HANDLERS + 128, 1));
    machine.cpu.regs.r[RSP] = 0x7f00_0000_0010;
    machine.cpu.fault_address = 0x1234;
    machine.raise(Fault::with_code(Vector::PageFault, 2));
    assert_eq!((machine.cpu.regs.r[RIP], machine.cpu.sys.cr2), (HANDLERS + 128, 0x7f00_0000_0008));

    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.sys.idtr.limit = 0;
    machine.raise(Fault::UNDEFINED);
    match &machine.cpu.exit {
        Some(VmExit::Shutdown(text)) => assert!(text.contains("exception 6, then exception 13"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_page_fault_sets_its_address() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.regs.r[0] = 0x7f00_dead_b000;
    // MOV [RAX], RAX, by the handler of the interpreter.
    let fault = machine.run(&[0x48, 0x89, 0x00]).unwrap_err();
    machine.raise(fault);
    assert_eq!(machine.cpu.sys.cr2, 0x7f00_dead_b000);
    assert_eq!(machine.stack::<u64, 1>(), [2]);
}

#[test]
fn real_mode_uses_its_vector_table() {
    let mut machine = Machine::new(Start::Real);
    machine.store(0x21 * 4, 0x5678_1234u32);
    machine.cpu.regs.rflags |= rflags::IF | rflags::CF;
    machine.run(&[0xcd, 0x21]).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.seg[seg::CS].base, cpu.regs.r[RIP]), (0x56780, 0x1234));
    assert_eq!(cpu.regs.rflags, rflags::FIXED | rflags::CF);
    let flags = (rflags::FIXED | rflags::IF | rflags::CF) as u16;
    assert_eq!(machine.stack::<u16, 3>(), [2, (CODE >> 4) as u16, flags]);
    machine.run(&IRETD).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.seg[seg::CS].base, cpu.regs.r[RIP], cpu.regs.r[RSP]), (CODE, 2, STACK));
    assert!(cpu.regs.flag(rflags::IF));
    // Beyond the table: a general-protection fault, which here finds its own entry.
    machine.cpu.sys.idtr.limit = 13 * 4 + 3;
    assert_eq!(machine.run(&[0xcd, 0x21]), Err(Fault::GP0));
}

#[test]
fn iret_refuses_what_would_raise_privilege() {
    let fault = |code: &[u8], selector: u64, ss: u64, rip: u64, start| {
        let mut machine = Machine::new(start);
        let size = if *code == IRETQ[..] { 8 } else { 4 };
        for (index, value) in [rip, selector, rflags::FIXED, STACK, ss].into_iter().enumerate() {
            match size {
                8 => machine.store(STACK + index as u64 * 8, value),
                _ => machine.store(STACK + index as u64 * 4, value as u32),
            }
        }
        machine.faults(code)
    };
    let (long, user) = (Start::Long { cpl: 0 }, Start::Protected { cpl: 3 });
    let np = |selector| Fault::with_code(Vector::SegmentNotPresent, selector);
    for (code, selector, ss, rip, start, expected) in [
        (&IRETD[..], CODE32, 0, 0, user, Fault::gp(CODE32)),
        (&IRETD, 0, 0, 0, user, Fault::GP0),
        (&IRETD, 3, 0, 0, user, Fault::GP0),
        (&IRETD, USER_DATA, 0, 0, user, Fault::gp(USER_DATA)),
        (&IRETQ, USER_CODE64, 0, CODE, long, Fault::GP0),
        (&IRETQ, USER_CODE64, USER_DATA, 0x8000_0000_0000, long, Fault::GP0),
        (&IRETQ, USER_CODE64, DATA32, CODE, long, Fault::gp(DATA32)),
        (&IRETQ, ABSENT_CODE, DATA32, CODE, long, np(ABSENT_CODE)),
        (&IRETQ, CODE64 | 3, USER_DATA, CODE, long, Fault::gp(CODE64)),
    ] {
        let got = fault(code, selector as u64, ss as u64, rip, start);
        assert_eq!(got, expected, "{selector:#x} {ss:#x} {rip:#x}");
    }
    // A set NT flag means a task switch, which long mode does not have.
    let mut machine = Machine::new(long);
    machine.cpu.regs.rflags |= rflags::NT;
    assert_eq!(machine.faults(&IRETQ), Fault::GP0);
}

#[test]
fn iret_in_user_code_cannot_change_what_is_the_kernels() {
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    let all =
        rflags::STATUS | rflags::IF | rflags::IOPL | rflags::DF | rflags::AC | rflags::VIP | rflags::VIF;
    for (index, value) in [CODE + 0x100, USER_CODE32 as u64, all | rflags::VM].into_iter().enumerate() {
        machine.store(STACK + index as u64 * 4, value as u32);
    }
    machine.run(&IRETD).unwrap();
    let expected = rflags::FIXED | rflags::STATUS | rflags::DF | rflags::AC;
    assert_eq!(machine.cpu.regs.rflags, expected);
}

#[test]
fn iret_leads_to_compatibility_mode_and_null_stacks() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    for (index, value) in
        [CODE, USER_CODE32 as u64, rflags::FIXED, STACK0, USER_DATA as u64].into_iter().enumerate()
    {
        machine.store(STACK + index as u64 * 8, value);
    }
    machine.run(&IRETQ).unwrap();
    let mode = machine.cpu.mode;
    assert_eq!((mode.cpl, mode.code_bits, mode.stack_bits, mode.long), (3, 32, 32, true));
    // From there an interrupt enters 64-bit code again.
    machine.run(&[0xcd, 0x80]).unwrap();
    assert_eq!((machine.cpu.mode.code_bits, machine.cpu.regs.r[RSP]), (64, STACK0 - 40));
    // To 64-bit kernel code with a null stack segment.
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    for (index, value) in [CODE, CODE64 as u64, rflags::FIXED, STACK0, 0].into_iter().enumerate() {
        machine.store(STACK + index as u64 * 8, value);
    }
    machine.run(&IRETQ).unwrap();
    assert_eq!((machine.cpu.mode.cpl, machine.cpu.regs.r[RSP]), (0, STACK0));
}

#[test]
fn debug_traps_say_why_and_clear_detection() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.sys.dr7 |= dr7::GD;
    machine.cpu.regs.rflags |= rflags::TF;
    machine.cpu.single_step_trap();
    assert_eq!(machine.cpu.regs.r[RIP], HANDLERS + 16);
    assert_eq!(machine.cpu.sys.dr6, dr6::FIXED | dr6::BS);
    assert_eq!(machine.cpu.sys.dr7 & dr7::GD, 0);
    // A trap pushes the flags as they are: without RF.
    assert_eq!(machine.stack::<u64, 3>()[2], rflags::FIXED | rflags::TF);
    // Loading SS holds the trap off.
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    machine.cpu.shadow = true;
    machine.cpu.single_step_trap();
    assert_eq!(machine.cpu.regs.r[RIP], CODE);
}

#[test]
fn bounds_are_checked_with_sign() {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    machine.store(DATA, -2i32 as u32);
    machine.store(DATA + 4, 5u32);
    // BOUND EAX, [DATA].
    let bound = [0x62, 0x05, 0x00, 0xa0, 0x00, 0x00];
    for (value, inside) in [(-2i32, true), (5, true), (0, true), (-3, false), (6, false)] {
        machine.cpu.regs.r[0] = value as u32 as u64;
        let expected = if inside { Ok(()) } else { Err(Fault::new(Vector::BoundRange)) };
        assert_eq!(machine.run(&bound), expected, "{value}");
    }
}

#[test]
fn conforming_handlers_keep_the_level() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    machine.store(IDT + 0x80 * 16, gate(14, 3, CONFORMING, HANDLERS, 0));
    machine.run(&[0xcd, 0x80]).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.regs.seg[seg::CS].selector), (3, CONFORMING | 3));
    assert!(cpu.regs.seg[seg::CS].has(access::CONFORMING));
    assert_eq!(cpu.regs.r[RSP], STACK - 40);
}

/// What IRET loads it reads anew each time, even where it has the same already.
#[test]
fn iret_to_the_same_segments_sees_what_became_of_their_descriptors() {
    let np = |selector| Fault::with_code(Vector::SegmentNotPresent, selector);
    let frame = |machine: &mut Machine, rip: u64, flags: u64| {
        machine.cpu.regs.r[RSP] = STACK - 40;
        for (index, value) in [rip, CODE64 as u64, flags, STACK - 8, DATA32 as u64].into_iter().enumerate() {
            machine.store(STACK - 40 + 8 * index as u64, value);
        }
    };
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    // The first 2 MiB are the supervisor's.
    machine.store(TABLES + 0x2000, 0x83u64);
    machine.cpu.nmi_blocked = true;
    let flags = rflags::FIXED | rflags::IF | rflags::DF | rflags::CF;
    // The first fills the software TLB.
    for rip in [CODE + 0x10, CODE + 0x20, CODE] {
        frame(&mut machine, rip, flags | rflags::RF);
        machine.run(&IRETQ).unwrap();
        let cpu = &machine.cpu;
        assert_eq!((cpu.regs.r[RIP], cpu.regs.r[RSP], cpu.regs.rflags), (rip, STACK - 8, flags));
        assert!(!cpu.nmi_blocked);
    }
    // AC takes effect: it decides through which arrays memory is reached.
    machine.cpu.sys.cr4 |= x86::reg::cr4::SMAP;
    machine.cpu.update_mode();
    let kernel = machine.cpu.mode.data;
    frame(&mut machine, CODE, flags | rflags::AC);
    machine.run(&IRETQ).unwrap();
    assert_ne!(machine.cpu.mode.data, kernel);

    frame(&mut machine, 0x8000_0000_0000, flags);
    assert_eq!(machine.faults(&IRETQ), Fault::GP0);
    frame(&mut machine, CODE, flags);
    for selector in [CODE64, DATA32] {
        let at = GDT + selector as u64;
        let descriptor = machine.load::<u64>(at);
        machine.store(at, descriptor & !(1 << 47));
        let expected =
            if selector == CODE64 { np(selector) } else { Fault::with_code(Vector::StackFault, selector) };
        assert_eq!(machine.faults(&IRETQ), expected);
        machine.store(at, descriptor);
    }
    // A data segment in place of the code.
    let (at, descriptor) = (GDT + CODE64 as u64, machine.load::<u64>(GDT + DATA32 as u64));
    machine.store(at, descriptor);
    assert_eq!(machine.faults(&IRETQ), Fault::gp(CODE64));
    // A table that is too short.
    machine.cpu.sys.gdtr.limit = CODE64 + 6;
    assert_eq!(machine.faults(&IRETQ), Fault::gp(CODE64));
}
