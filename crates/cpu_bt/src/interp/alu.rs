//! Addition, subtraction and logic.

use super::*;
use crate::fault::Result;

pub(super) const ADD: u8 = 0;
pub(super) const OR: u8 = 1;
pub(super) const ADC: u8 = 2;
pub(super) const SBB: u8 = 3;
pub(super) const AND: u8 = 4;
pub(super) const SUB: u8 = 5;
pub(super) const XOR: u8 = 6;
pub(super) const INC: u8 = 7;
pub(super) const DEC: u8 = 8;
pub(super) const NEG: u8 = 9;
pub(super) const NOT: u8 = 10;

#[inline(always)]
fn compute2<const K: u8, T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
    let (result, ax) = match K {
        ADD => a.add(b),
        OR => a.or(b),
        ADC => a.adc(b, cpu.regs.rflags),
        SBB => a.sbb(b, cpu.regs.rflags),
        AND => a.and(b),
        SUB => a.sub(b),
        _ => a.xor(b),
    };
    cpu.regs.set_status(ax, rflags::STATUS);
    result
}

#[inline(always)]
fn compute1<const K: u8, T: Int>(cpu: &mut Cpu, a: T) -> T {
    let (result, ax) = match K {
        INC => a.inc(),
        DEC => a.dec(),
        NEG => a.neg(),
        _ => return T::from_u64(!a.to_u64()),
    };
    // INC and DEC leave the carry alone.
    let mask = if K == NEG { rflags::STATUS } else { rflags::STATUS & !rflags::CF };
    cpu.regs.set_status(ax, mask);
    result
}

fn reg_reg<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    let result = compute2::<K, T>(cpu, a, b);
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

fn reg_imm<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = cpu.regs.get::<T>(op.dst);
    let result = compute2::<K, T>(cpu, a, T::from_u64(op.imm));
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

fn reg_mem<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = load::<T>(cpu, op)?;
    let a = cpu.regs.get::<T>(op.dst);
    let result = compute2::<K, T>(cpu, a, b);
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

fn mem_reg<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = cpu.regs.get::<T>(op.dst);
    modify(cpu, op, |cpu, a| compute2::<K, T>(cpu, a, b))?;
    Ok(Flow::Next)
}

fn mem_imm<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = T::from_u64(op.imm);
    modify(cpu, op, |cpu, a| compute2::<K, T>(cpu, a, b))?;
    Ok(Flow::Next)
}

/// ADD, OR, ADC, SBB, AND, SUB, XOR.
pub(super) fn two_operands<const K: u8>(insn: &Instruction, op: &mut Op) -> bool {
    let size = operand_size(insn, 0);
    op.run = match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_size!(size, reg_reg, K),
        (OpKind::Register, OpKind::Memory) => by_size!(size, reg_mem, K),
        (OpKind::Register, _) => by_size!(size, reg_imm, K),
        (OpKind::Memory, OpKind::Register) => by_size!(size, mem_reg, K),
        _ => by_size!(size, mem_imm, K),
    };
    true
}

fn compare_reg_reg<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    compute2::<K, T>(cpu, a, b);
    Ok(Flow::Next)
}

fn compare_reg_imm<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = cpu.regs.get::<T>(op.dst);
    compute2::<K, T>(cpu, a, T::from_u64(op.imm));
    Ok(Flow::Next)
}

fn compare_reg_mem<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = load::<T>(cpu, op)?;
    let a = cpu.regs.get::<T>(op.dst);
    compute2::<K, T>(cpu, a, b);
    Ok(Flow::Next)
}

fn compare_mem_reg<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = load::<T>(cpu, op)?;
    let b = cpu.regs.get::<T>(op.dst);
    compute2::<K, T>(cpu, a, b);
    Ok(Flow::Next)
}

fn compare_mem_imm<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = load::<T>(cpu, op)?;
    compute2::<K, T>(cpu, a, T::from_u64(op.imm));
    Ok(Flow::Next)
}

/// CMP and TEST: the flags of subtraction and conjunction, without the result.
pub(super) fn compare<const K: u8>(insn: &Instruction, op: &mut Op) -> bool {
    let size = operand_size(insn, 0);
    op.run = match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_size!(size, compare_reg_reg, K),
        (OpKind::Register, OpKind::Memory) => by_size!(size, compare_reg_mem, K),
        (OpKind::Register, _) => by_size!(size, compare_reg_imm, K),
        (OpKind::Memory, OpKind::Register) => by_size!(size, compare_mem_reg, K),
        _ => by_size!(size, compare_mem_imm, K),
    };
    true
}

fn reg<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = cpu.regs.get::<T>(op.dst);
    let result = compute1::<K, T>(cpu, a);
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

fn mem<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    modify(cpu, op, compute1::<K, T>)?;
    Ok(Flow::Next)
}

/// INC, DEC, NEG, NOT.
pub(super) fn one_operand<const K: u8>(insn: &Instruction, op: &mut Op) -> bool {
    let size = operand_size(insn, 0);
    op.run = if is_memory(insn, 0) { by_size!(size, mem, K) } else { by_size!(size, reg, K) };
    true
}
