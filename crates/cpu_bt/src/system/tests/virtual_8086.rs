//! Virtual-8086 mode.

use super::machine::*;
use crate::fault::Fault;
use crate::regs::{RIP, RSP};
use x86::reg::{cr4, rflags};
use x86::state::seg;

const SEGMENT: u16 = (CODE >> 4) as u16;

/// A machine in virtual-8086 mode, entered by IRETD from privilege level 0.
fn machine(iopl: u64) -> Machine {
    let mut machine = Machine::new(Start::Protected { cpl: 0 });
    let flags = rflags::FIXED | rflags::VM | rflags::IF | iopl << 12;
    let frame = [0x40, SEGMENT as u64, flags, 0x8000, 0x0100, 0x0200, 0x0300, 0x0400, 0x0500];
    for (index, value) in frame.into_iter().enumerate() {
        machine.store(STACK - 0x40 + 4 * index as u64, value as u32);
    }
    machine.cpu.regs.r[RSP] = STACK - 0x40;
    machine.run(&[0xcf]).unwrap();
    machine
}

#[test]
fn iret_enters_and_an_interrupt_leaves() {
    let mut machine = machine(3);
    let cpu = &machine.cpu;
    assert!(cpu.mode.v86);
    assert_eq!((cpu.mode.cpl, cpu.mode.code_bits, cpu.regs.r[RIP], cpu.regs.r[RSP]), (3, 16, 0x40, 0x8000));
    let bases = [0x2000, CODE, 0x1000, 0x3000, 0x4000, 0x5000];
    for (index, base) in bases.into_iter().enumerate() {
        let segment = cpu.regs.seg[index];
        assert_eq!((segment.base, segment.limit, segment.dpl()), (base, 0xffff, 3), "{index}");
    }
    let flags = cpu.regs.rflags;
    machine.cpu.deliver_interrupt(0x30);
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.v86, cpu.mode.cpl, cpu.regs.r[RIP]), (false, 0, HANDLERS + 0x300));
    assert!(cpu.regs.seg[seg::DS].is_unusable() && cpu.regs.seg[seg::GS].is_unusable());
    assert_eq!(cpu.regs.r[RSP], STACK0 - 36);
    let frame = [0x40, SEGMENT as u32, flags as u32, 0x8000, 0x100, 0x200, 0x300, 0x400, 0x500];
    assert_eq!(machine.stack::<u32, 9>(), frame);
    machine.run(&[0xcf]).unwrap();
    assert!(machine.cpu.mode.v86);
    assert_eq!(machine.cpu.regs.rflags, flags);
}

#[test]
fn sensitive_instructions_need_iopl_3() {
    // CLI, STI, PUSHF, POPF, INT 0x30, IRET.
    for code in [&[0xfau8][..], &[0xfb], &[0x9c], &[0x9d], &[0xcd, 0x30], &[0xcf]] {
        assert_eq!(machine(0).faults(code), Fault::GP0, "{code:02x?}");
    }
    // HLT and moves to control registers are never allowed; LLDT and ARPL do not exist.
    for iopl in [0, 3] {
        assert_eq!(machine(iopl).faults(&[0xf4]), Fault::GP0);
        assert_eq!(machine(iopl).faults(&[0x0f, 0x22, 0xc0]), Fault::GP0);
        assert_eq!(machine(iopl).faults(&[0x0f, 0x00, 0xd0]), Fault::UNDEFINED);
    }
    let mut machine = machine(3);
    machine.run(&[0xfa]).unwrap();
    assert!(!machine.cpu.regs.flag(rflags::IF));
    assert_eq!(machine.faults(&[0xcd, 0x30]), Fault::with_code(x86::Vector::GeneralProtection, 0x182));
    machine.run(&[0xcd, 0x80]).unwrap();
    assert_eq!((machine.cpu.mode.v86, machine.cpu.regs.r[RIP]), (false, HANDLERS + 0x800));
}

#[test]
fn popf_keeps_iopl() {
    let mut machine = machine(3);
    machine.store(0x1000 + 0x8000, 0x0001u16);
    machine.run(&[0x9d]).unwrap();
    let flags = machine.cpu.regs.rflags;
    assert_eq!(flags, rflags::FIXED | rflags::VM | rflags::IOPL | rflags::CF);
}

#[test]
fn extensions_virtualize_the_interrupt_flag_and_redirect() {
    let mut machine = machine(0);
    machine.cpu.sys.cr4 |= cr4::VME;
    // STI sets VIF; PUSHF shows it as IF, with IOPL 3.
    machine.run(&[0xfb]).unwrap();
    assert!(machine.cpu.regs.flag(rflags::VIF));
    machine.run(&[0x9c]).unwrap();
    let pushed = machine.stack::<u16, 1>()[0] as u64;
    assert_eq!(pushed, rflags::FIXED | rflags::IF | rflags::IOPL);
    // INT 0x21 is redirected to the program's own table where its bit is clear.
    machine.store(0x21 * 4, 0x2000_1234u32);
    machine.store::<u8>(TSS_BASE + IO_MAP - 32 + 4, 0xfd);
    machine.run(&[0xcd, 0x21]).unwrap();
    let cpu = &machine.cpu;
    assert!(cpu.mode.v86 && !cpu.regs.flag(rflags::VIF) && cpu.regs.flag(rflags::IF));
    assert_eq!((cpu.regs.seg[seg::CS].base, cpu.regs.r[RIP]), (0x20000, 0x1234));
    // IRET goes back, with VIF from the stack; with a virtual interrupt pending it traps.
    machine.cpu.regs.rflags |= rflags::VIP;
    assert_eq!(machine.faults(&[0xcf]), Fault::GP0);
    machine.cpu.regs.rflags &= !rflags::VIP;
    machine.run(&[0xcf]).unwrap();
    assert!(machine.cpu.regs.flag(rflags::VIF));
    assert_eq!(machine.cpu.regs.seg[seg::CS].base, CODE);
    // Where its bit is set INT n needs IOPL 3.
    machine.store::<u8>(TSS_BASE + IO_MAP - 32 + 4, 0xff);
    assert_eq!(machine.faults(&[0xcd, 0x21]), Fault::GP0);
}
