//! Near branches.

use super::condition::{by_condition, holds, number};
use super::stack::{pop, push};
use super::*;
use crate::fault::{Fault, Result};
use crate::regs::{RCX, RIP, RSP};
use x86::paging::is_canonical;
use x86::state::seg;

/// Goes to `target` in the present code segment.
#[inline(always)]
fn go(cpu: &mut Cpu, target: u64) -> Result<Flow> {
    check(cpu, target)?;
    cpu.regs.r[RIP] = target;
    Ok(Flow::Branch)
}

/// Raises the fault that going to `target` would raise.
#[inline(always)]
fn check(cpu: &Cpu, target: u64) -> Result<()> {
    let reachable = match cpu.mode.is_64() {
        true => is_canonical(target),
        false => target <= cpu.regs.seg[seg::CS].limit as u64,
    };
    if reachable { Ok(()) } else { Err(Fault::GP0) }
}

/// The target of a relative branch: `scale` holds the operand size.
#[inline(always)]
fn relative(cpu: &Cpu, op: &Op) -> u64 {
    let target = cpu.regs.r[RIP].wrapping_add(op.imm);
    match op.scale {
        8 => target,
        4 => target & 0xffff_ffff,
        _ => target & 0xffff,
    }
}

fn set_relative_size(insn: &Instruction, op: &mut Op) {
    op.scale = match insn.op0_kind() {
        OpKind::NearBranch64 => 8,
        OpKind::NearBranch32 => 4,
        _ => 2,
    };
    op.ends_block = true;
}

fn jcc<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    if holds::<C>(cpu) {
        let target = relative(cpu, op);
        return go(cpu, target);
    }
    Ok(Flow::Next)
}

pub(super) fn select_jcc(insn: &Instruction, op: &mut Op) -> bool {
    set_relative_size(insn, op);
    op.run = by_condition!(number(insn), jcc);
    true
}

fn jmp_relative(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let target = relative(cpu, op);
    go(cpu, target)
}

fn jmp_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let target = cpu.regs.get::<T>(op.dst).to_u64();
    go(cpu, target)
}

fn jmp_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let target = load::<T>(cpu, op)?.to_u64();
    go(cpu, target)
}

pub(super) fn select_jmp(insn: &Instruction, op: &mut Op) -> bool {
    if insn.is_jmp_far() || insn.is_jmp_far_indirect() {
        return false;
    }
    op.ends_block = true;
    let size = operand_size(insn, 0);
    op.run = match insn.op0_kind() {
        OpKind::Register => by_size!(size, jmp_reg),
        OpKind::Memory => by_size!(size, jmp_mem),
        _ => {
            set_relative_size(insn, op);
            jmp_relative
        }
    };
    true
}

fn call_to<T: Int>(cpu: &mut Cpu, target: u64) -> Result<Flow> {
    check(cpu, target)?;
    let back = T::from_u64(cpu.regs.r[RIP]);
    push(cpu, back)?;
    cpu.regs.r[RIP] = target;
    Ok(Flow::Branch)
}

fn call_relative<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let target = relative(cpu, op);
    call_to::<T>(cpu, target)
}

fn call_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let target = cpu.regs.get::<T>(op.dst).to_u64();
    call_to::<T>(cpu, target)
}

fn call_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let target = load::<T>(cpu, op)?.to_u64();
    call_to::<T>(cpu, target)
}

pub(super) fn select_call(insn: &Instruction, op: &mut Op) -> bool {
    if insn.is_call_far() || insn.is_call_far_indirect() {
        return false;
    }
    op.ends_block = true;
    let size = operand_size(insn, 0);
    op.run = match insn.op0_kind() {
        OpKind::Register => by_size!(size, call_reg),
        OpKind::Memory => by_size!(size, call_mem),
        _ => {
            set_relative_size(insn, op);
            by_size!(op.scale, call_relative)
        }
    };
    true
}

fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let before = cpu.regs.r[RSP];
    let target = pop::<T>(cpu)?.to_u64();
    if let Err(fault) = check(cpu, target) {
        cpu.regs.r[RSP] = before;
        return Err(fault);
    }
    if op.imm != 0 {
        super::stack::move_pointer(cpu, op.imm);
    }
    cpu.regs.r[RIP] = target;
    Ok(Flow::Branch)
}

pub(super) fn select_ret(insn: &Instruction, op: &mut Op) -> bool {
    let size = insn.stack_pointer_increment() as u64 - op.imm;
    op.ends_block = true;
    op.run = by_size!(size, ret);
    true
}

/// LOOP, LOOPE, LOOPNE (`dst` 0, 1, 2) and JCXZ (3); the count has the address size, in `address_cut`.
fn loop_or_zero<const K: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let cut = |value: u64| value << op.address_cut >> op.address_cut;
    let mut count = cut(cpu.regs.r[RCX]);
    if K != 3 {
        count = cut(count.wrapping_sub(1));
    }
    let taken = match K {
        0 => count != 0,
        1 => count != 0 && cpu.regs.flag(rflags::ZF),
        2 => count != 0 && !cpu.regs.flag(rflags::ZF),
        _ => count == 0,
    };
    let target = relative(cpu, op);
    if taken {
        check(cpu, target)?;
    }
    if K != 3 {
        match op.address_cut {
            48 => cpu.regs.set(RCX as u8, count as u16),
            32 => cpu.regs.set(RCX as u8, count as u32),
            _ => cpu.regs.set(RCX as u8, count),
        }
    }
    if taken {
        cpu.regs.r[RIP] = target;
        return Ok(Flow::Branch);
    }
    Ok(Flow::Next)
}

pub(super) fn select_loop(insn: &Instruction, op: &mut Op) -> bool {
    use iced_x86::Code::*;
    set_relative_size(insn, op);
    op.address_cut = match insn.code() {
        Loopne_rel8_16_CX | Loopne_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loop_rel8_16_CX
        | Loop_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 48,
        Loopne_rel8_16_RCX | Loopne_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX
        | Loop_rel8_16_RCX | Loop_rel8_64_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => 0,
        _ => 32,
    };
    op.run = match insn.mnemonic() {
        M::Loop => loop_or_zero::<0>,
        M::Loope => loop_or_zero::<1>,
        M::Loopne => loop_or_zero::<2>,
        _ => loop_or_zero::<3>,
    };
    true
}
