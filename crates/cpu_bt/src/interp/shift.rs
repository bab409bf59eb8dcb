//! Shifts and rotates by one count. (SHLD and SHRD execute natively.)

use super::*;
use crate::fault::Result;
use crate::regs::RCX;

pub(super) const SHL: u8 = 0;
pub(super) const SHR: u8 = 1;
pub(super) const SAR: u8 = 2;
pub(super) const ROL: u8 = 3;
pub(super) const ROR: u8 = 4;
pub(super) const RCL: u8 = 5;
pub(super) const RCR: u8 = 6;

#[inline(always)]
fn compute<const K: u8, T: Int>(cpu: &mut Cpu, a: T, count: u8) -> T {
    // The processor masks the count, and a masked count of zero changes no flag (SDM vol. 2B, "SAL").
    let count = count & if T::BYTES == 8 { 0x3f } else { 0x1f };
    if count == 0 {
        return a;
    }
    let (result, ax) = match K {
        SHL => a.shl(count),
        SHR => a.shr(count),
        SAR => a.sar(count),
        ROL => a.rol(count),
        ROR => a.ror(count),
        RCL => a.rcl(count, cpu.regs.rflags),
        _ => a.rcr(count, cpu.regs.rflags),
    };
    let mask = if K <= SAR { rflags::STATUS } else { rflags::CF | rflags::OF };
    cpu.regs.set_status(ax, mask);
    result
}

fn reg_imm<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = cpu.regs.get::<T>(op.dst);
    let result = compute::<K, T>(cpu, a, op.imm as u8);
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

fn reg_cl<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = cpu.regs.get::<T>(op.dst);
    let result = compute::<K, T>(cpu, a, cpu.regs.r[RCX] as u8);
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

fn mem_imm<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    modify(cpu, op, |cpu, a| compute::<K, T>(cpu, a, op.imm as u8))?;
    Ok(Flow::Next)
}

fn mem_cl<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let count = cpu.regs.r[RCX] as u8;
    modify(cpu, op, |cpu, a| compute::<K, T>(cpu, a, count))?;
    Ok(Flow::Next)
}

pub(super) fn select<const K: u8>(insn: &Instruction, op: &mut Op) -> bool {
    let size = operand_size(insn, 0);
    let by_register = insn.op1_kind() == OpKind::Register;
    op.run = match (is_memory(insn, 0), by_register) {
        (false, false) => by_size!(size, reg_imm, K),
        (false, true) => by_size!(size, reg_cl, K),
        (true, false) => by_size!(size, mem_imm, K),
        (true, true) => by_size!(size, mem_cl, K),
    };
    true
}
