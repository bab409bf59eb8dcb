//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2; APM vol. 3).
//!
//! Intel's processors have SYSCALL in 64-bit mode only and SYSENTER everywhere; AMD's have SYSCALL
//! everywhere and SYSENTER outside long mode only.

use super::After::{self, *};
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::jit::fast::SYSRET_FLAGS;
use crate::regs::{RCX, RDX, RIP, RSP};
use iced_x86::{Instruction, Mnemonic};
use x86::paging::is_canonical;
use x86::reg::{efer, rflags};
use x86::segment::{Segment, access};
use x86::state::seg;

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    Some(match insn.mnemonic() {
        Mnemonic::Syscall => (syscall, Ends),
        Mnemonic::Sysret => (sysret32, Ends),
        Mnemonic::Sysretq => (sysret64, Ends),
        Mnemonic::Sysenter => (sysenter, Ends),
        Mnemonic::Sysexit => (sysexit32, Ends),
        Mnemonic::Sysexitq => (sysexit64, Ends),
        _ => return None,
    })
}

const R11: usize = 11;

/// The flat code segment that these instructions load without looking at a descriptor.
fn flat_code(selector: u16, cpl: u8, long: bool) -> Segment {
    let size = if long { access::LONG } else { access::DEFAULT_BIG };
    let kind = access::CODE | access::READABLE | access::ACCESSED;
    flat(selector, cpl, kind | size)
}

/// The flat stack segment likewise.
fn flat_stack(selector: u16, cpl: u8) -> Segment {
    flat(selector, cpl, access::WRITABLE | access::ACCESSED | access::DEFAULT_BIG)
}

fn flat(selector: u16, cpl: u8, rights: u16) -> Segment {
    let common = access::PRESENT | access::NOT_SYSTEM | access::GRANULARITY | (cpl as u16) << 5;
    Segment { base: 0, limit: 0xffff_ffff, selector, access: common | rights }
}

/// The code and stack segments after SYSCALL.
pub(crate) fn kernel_segments(star: u64, long: bool) -> (Segment, Segment) {
    let selector = (star >> 32) as u16 & !3;
    (flat_code(selector, 0, long), flat_stack(selector.wrapping_add(8), 0))
}

/// The code and stack segments after SYSRET, to 64-bit code or not.
pub(crate) fn user_segments(star: u64, to_64: bool) -> (Segment, Segment) {
    let base = (star >> 48) as u16;
    let selector = if to_64 { base.wrapping_add(16) } else { base };
    (flat_code(selector | 3, 3, to_64), flat_stack(base.wrapping_add(8) | 3, 3))
}

impl Cpu {
    fn enter_flat(&mut self, code: Segment, stack: Segment, rip: u64) {
        self.regs.seg[seg::CS] = code;
        self.regs.seg[seg::SS] = stack;
        self.regs.r[RIP] = rip;
        self.update_mode();
    }
}

fn syscall(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let is_64 = cpu.mode.is_64();
    if cpu.sys.efer & efer::SCE == 0 || !cpu.mode.protected || (!is_64 && cpu.is_intel()) {
        return Err(Fault::UNDEFINED);
    }
    let trap = cpu.regs.flag(rflags::TF);
    let rip = cpu.regs.r[RIP];
    let target;
    if cpu.mode.long {
        cpu.regs.r[RCX] = rip;
        cpu.regs.r[R11] = cpu.regs.rflags & !rflags::RF;
        target = if is_64 { cpu.sys.lstar } else { cpu.sys.cstar };
        cpu.regs.rflags &= !(cpu.sys.sfmask | rflags::RF);
        cpu.regs.rflags |= rflags::FIXED;
    } else {
        cpu.regs.r[RCX] = rip & 0xffff_ffff;
        target = cpu.sys.star & 0xffff_ffff;
        cpu.regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    }
    let (code, stack) = kernel_segments(cpu.sys.star, cpu.mode.long);
    cpu.enter_flat(code, stack, target);
    // A trap that SFMASK masks is not taken after the instruction.
    cpu.finish_without_trap(trap && !cpu.regs.flag(rflags::TF))
}

fn sysret32(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    sysret(cpu, false)
}

fn sysret64(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    sysret(cpu, true)
}

fn sysret(cpu: &mut Cpu, to_64: bool) -> Result<Flow> {
    let intel = cpu.is_intel();
    if cpu.sys.efer & efer::SCE == 0 || (!cpu.mode.is_64() && intel) {
        return Err(Fault::UNDEFINED);
    }
    if !cpu.mode.protected || cpu.cpl() != 0 {
        return Err(Fault::GP0);
    }
    let rip = cpu.regs.r[RCX];
    // AMD processors do not look at the target here: fetching from it faults, with user privilege.
    if to_64 && intel && !is_canonical(rip) {
        return Err(Fault::GP0);
    }
    if cpu.mode.long {
        cpu.regs.rflags = cpu.regs.r[R11] & SYSRET_FLAGS | rflags::FIXED;
    } else {
        cpu.regs.rflags |= rflags::IF;
    }
    let rip = if to_64 { rip } else { rip & 0xffff_ffff };
    let (code, stack) = user_segments(cpu.sys.star, to_64);
    cpu.enter_flat(code, stack, rip);
    cpu.drop_resume_flag();
    Ok(Flow::Branch)
}

/// #UD where the guest's processor has no SYSENTER and SYSEXIT, #GP(0) in real-address mode and without
/// target.
fn check_sysenter(cpu: &Cpu) -> Result<()> {
    if cpu.mode.long && !cpu.is_intel() {
        return Err(Fault::UNDEFINED);
    }
    if !cpu.mode.protected || cpu.sys.sysenter_cs & 0xfffc == 0 {
        return Err(Fault::GP0);
    }
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    check_sysenter(cpu)?;
    let selector = cpu.sys.sysenter_cs as u16 & !3;
    let long = cpu.mode.long;
    let cut = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    cpu.regs.r[RSP] = cpu.sys.sysenter_esp & cut;
    let rip = cpu.sys.sysenter_eip & cut;
    cpu.enter_flat(flat_code(selector, 0, long), flat_stack(selector.wrapping_add(8), 0), rip);
    Ok(Flow::Branch)
}

fn sysexit32(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    sysexit(cpu, false)
}

fn sysexit64(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    sysexit(cpu, true)
}

fn sysexit(cpu: &mut Cpu, to_64: bool) -> Result<Flow> {
    check_sysenter(cpu)?;
    cpu.require_cpl0()?;
    let base = cpu.sys.sysenter_cs as u16 & !3;
    let (mut rip, mut rsp) = (cpu.regs.r[RDX], cpu.regs.r[RCX]);
    if to_64 && !(is_canonical(rip) && is_canonical(rsp)) {
        return Err(Fault::GP0);
    }
    if !to_64 {
        rip &= 0xffff_ffff;
        rsp &= 0xffff_ffff;
    }
    let first = base.wrapping_add(if to_64 { 32 } else { 16 });
    cpu.regs.r[RSP] = rsp;
    let stack = flat_stack(first.wrapping_add(8) | 3, 3);
    cpu.enter_flat(flat_code(first | 3, 3, to_64), stack, rip);
    Ok(Flow::Branch)
}
