//! SYSCALL, SYSRET, SYSENTER, SYSEXIT on both vendors' processors.

use super::machine::{selector::*, *};
use crate::fault::Fault;
use crate::regs::{RCX, RDX, RIP, RSP};
use x86::reg::{efer, rflags};
use x86::segment::access;
use x86::state::seg;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SYSRET: [u8; 2] = [0x0f, 0x07];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
const SYSENTER: [u8; 2] = [0x0f, 0x34];
const SYSEXIT: [u8; 2] = [0x0f, 0x35];
const SYSEXITQ: [u8; 3] = [0x48, 0x0f, 0x35];
const R11: usize = 11;

/// Kernel at `CODE64`; user segments at 0x20: 32-bit code there, data behind it, 64-bit code at 0x30.
fn prepare(machine: &mut Machine) {
    let cpu = &mut machine.cpu;
    cpu.sys.star = (0x23u64 << 48) | (CODE64 as u64) << 32 | 0x5000;
    cpu.sys.lstar = GATE;
    cpu.sys.cstar = GATE + 0x100;
    cpu.sys.sfmask = rflags::IF | rflags::DF;
    cpu.sys.sysenter_cs = CODE32 as u64;
    cpu.sys.sysenter_esp = STACK0;
    cpu.sys.sysenter_eip = GATE + 0x200;
}

#[test]
fn syscall_enters_the_kernel_and_sysret_leaves_it() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut machine = Machine::of(Start::Long { cpl: 3 }, vendor);
        prepare(&mut machine);
        machine.cpu.regs.rflags |= rflags::IF | rflags::DF | rflags::CF;
        let flags = machine.cpu.regs.rflags;
        machine.run(&SYSCALL).unwrap();
        let cpu = &machine.cpu;
        assert_eq!((cpu.mode.cpl, cpu.mode.code_bits, cpu.regs.r[RIP]), (0, 64, GATE));
        assert_eq!((cpu.regs.r[RCX], cpu.regs.r[R11]), (CODE + 2, flags));
        assert_eq!(cpu.regs.rflags, rflags::FIXED | rflags::CF);
        assert_eq!((cpu.regs.seg[seg::CS].selector, cpu.regs.seg[seg::SS].selector), (CODE64, CODE64 + 8));
        assert_eq!(cpu.regs.r[RSP], STACK, "the stack is left alone");
        machine.run(&SYSRETQ).unwrap();
        let cpu = &machine.cpu;
        assert_eq!((cpu.mode.cpl, cpu.mode.code_bits, cpu.regs.r[RIP]), (3, 64, CODE + 2));
        assert_eq!(cpu.regs.rflags, flags);
        assert_eq!((cpu.regs.seg[seg::CS].selector, cpu.regs.seg[seg::SS].selector), (0x33, 0x2b));
    }
}

#[test]
fn sysret_to_compatibility_mode() {
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    prepare(&mut machine);
    machine.cpu.regs.r[RCX] = 0xffff_ffff_0001_0000;
    machine.cpu.regs.r[R11] = u64::MAX;
    machine.run(&SYSRET).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.mode.code_bits, cpu.regs.r[RIP]), (3, 32, CODE));
    assert_eq!(cpu.regs.rflags, 0x3c_7fd7);
    assert_eq!(cpu.regs.seg[seg::CS].selector, 0x23);
}

#[test]
fn vendors_differ() {
    use Vendor::*;
    let (long, compat, legacy) =
        (Start::Long { cpl: 3 }, Start::Compat { cpl: 3 }, Start::Protected { cpl: 3 });
    for (vendor, start, code, expected) in [
        (Intel, compat, &SYSCALL[..], Err(Fault::UNDEFINED)),
        (Amd, compat, &SYSCALL, Ok(GATE + 0x100)),
        (Intel, legacy, &SYSCALL, Err(Fault::UNDEFINED)),
        (Amd, legacy, &SYSCALL, Ok(0x5000)),
        (Intel, long, &SYSENTER, Ok(GATE + 0x200)),
        (Intel, compat, &SYSENTER, Ok(GATE + 0x200)),
        (Intel, legacy, &SYSENTER, Ok(GATE + 0x200)),
        (Amd, long, &SYSENTER, Err(Fault::UNDEFINED)),
        (Amd, compat, &SYSENTER, Err(Fault::UNDEFINED)),
        (Amd, legacy, &SYSENTER, Ok(GATE + 0x200)),
        (Intel, Start::Real, &SYSENTER, Err(Fault::GP0)),
        (Intel, Start::Long { cpl: 3 }, &SYSRETQ, Err(Fault::GP0)),
        (Intel, Start::Long { cpl: 3 }, &SYSEXITQ, Err(Fault::GP0)),
    ] {
        let mut machine = Machine::of(start, vendor);
        prepare(&mut machine);
        machine.cpu.sys.efer |= efer::SCE;
        let got = machine.run(code).map(|()| machine.cpu.regs.r[RIP]);
        assert_eq!(got, expected, "{vendor:?} {start:?} {code:02x?}");
        if got.is_ok() {
            assert_eq!(machine.cpu.mode.cpl, 0);
        }
    }
}

#[test]
fn non_canonical_returns_fault_in_the_kernel_on_intel_only() {
    for (vendor, expected) in [(Vendor::Intel, Err(Fault::GP0)), (Vendor::Amd, Ok(()))] {
        let mut machine = Machine::of(Start::Long { cpl: 0 }, vendor);
        prepare(&mut machine);
        machine.cpu.regs.r[RCX] = 0x8000_0000_0000;
        assert_eq!(machine.run(&SYSRETQ), expected);
    }
}

#[test]
fn sysenter_and_sysexit() {
    let mut machine = Machine::new(Start::Protected { cpl: 3 });
    prepare(&mut machine);
    machine.cpu.regs.rflags |= rflags::IF;
    machine.run(&SYSENTER).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.regs.r[RSP], cpu.regs.rflags & rflags::IF), (STACK0, 0));
    let ss = cpu.regs.seg[seg::SS];
    assert_eq!((ss.selector, ss.has(access::DEFAULT_BIG)), (DATA32, true));
    machine.cpu.regs.r[RDX] = CODE + 0x10;
    machine.cpu.regs.r[RCX] = STACK;
    machine.run(&SYSEXIT).unwrap();
    let cpu = &machine.cpu;
    assert_eq!((cpu.mode.cpl, cpu.regs.r[RIP], cpu.regs.r[RSP]), (3, CODE + 0x10, STACK));
    assert_eq!((cpu.regs.seg[seg::CS].selector, cpu.regs.seg[seg::SS].selector), (0x1b, 0x23));
    // 64-bit targets have to be canonical.
    let mut machine = Machine::new(Start::Long { cpl: 0 });
    prepare(&mut machine);
    machine.cpu.regs.r[RDX] = 0x8000_0000_0000;
    assert_eq!(machine.faults(&SYSEXITQ), Fault::GP0);
    machine.cpu.sys.sysenter_cs = 0;
    machine.cpu.regs.r[RDX] = CODE;
    assert_eq!(machine.faults(&SYSEXITQ), Fault::GP0);
}

#[test]
fn syscall_needs_its_enable() {
    let mut machine = Machine::new(Start::Long { cpl: 3 });
    prepare(&mut machine);
    machine.cpu.sys.efer &= !efer::SCE;
    assert_eq!(machine.faults(&SYSCALL), Fault::UNDEFINED);
}
