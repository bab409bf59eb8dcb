//! Conditions, SETcc and CMOVcc.

use super::*;
use crate::fault::Result;
use iced_x86::ConditionCode;

/// The condition's number in encodings (SDM vol. 1, appendix B).
pub(crate) fn number(insn: &Instruction) -> u8 {
    match insn.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        _ => 15,
    }
}

/// Whether condition `C` holds.
#[inline(always)]
pub(super) fn holds<const C: u8>(cpu: &Cpu) -> bool {
    let flags = cpu.regs.rflags;
    let set = |bit: u64| flags & bit != 0;
    let result = match C >> 1 {
        0 => set(rflags::OF),
        1 => set(rflags::CF),
        2 => set(rflags::ZF),
        3 => flags & (rflags::CF | rflags::ZF) != 0,
        4 => set(rflags::SF),
        5 => set(rflags::PF),
        6 => set(rflags::SF) != set(rflags::OF),
        _ => set(rflags::ZF) || set(rflags::SF) != set(rflags::OF),
    };
    result != (C & 1 != 0)
}

/// Chooses one of sixteen functions by condition number.
macro_rules! by_condition {
    ($c:expr, $f:ident $(, $t:ty)*) => {
        match $c {
            0 => $f::<0 $(, $t)*>, 1 => $f::<1 $(, $t)*>, 2 => $f::<2 $(, $t)*>, 3 => $f::<3 $(, $t)*>,
            4 => $f::<4 $(, $t)*>, 5 => $f::<5 $(, $t)*>, 6 => $f::<6 $(, $t)*>, 7 => $f::<7 $(, $t)*>,
            8 => $f::<8 $(, $t)*>, 9 => $f::<9 $(, $t)*>, 10 => $f::<10 $(, $t)*>, 11 => $f::<11 $(, $t)*>,
            12 => $f::<12 $(, $t)*>, 13 => $f::<13 $(, $t)*>, 14 => $f::<14 $(, $t)*>, _ => $f::<15 $(, $t)*>,
        }
    };
}
pub(super) use by_condition;

fn set_reg<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = holds::<C>(cpu) as u8;
    cpu.regs.set(op.dst, value);
    Ok(Flow::Next)
}

fn set_mem<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = holds::<C>(cpu) as u8;
    store(cpu, op, value)?;
    Ok(Flow::Next)
}

pub(super) fn select_setcc(insn: &Instruction, op: &mut Op) -> bool {
    let c = number(insn);
    op.run = if is_memory(insn, 0) { by_condition!(c, set_mem) } else { by_condition!(c, set_reg) };
    true
}

fn cmov_reg<const C: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    // The destination is written either way: a 32-bit one loses its upper half even when nothing moves.
    let source = if holds::<C>(cpu) { op.src } else { op.dst };
    let value = cpu.regs.get::<T>(source);
    cpu.regs.set(op.dst, value);
    Ok(Flow::Next)
}

fn cmov_mem<const C: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    // The operand is read, and may fault, either way.
    let loaded = load::<T>(cpu, op)?;
    let value = if holds::<C>(cpu) { loaded } else { cpu.regs.get(op.dst) };
    cpu.regs.set(op.dst, value);
    Ok(Flow::Next)
}

pub(super) fn select_cmovcc(insn: &Instruction, op: &mut Op) -> bool {
    let c = number(insn);
    op.run = match (is_memory(insn, 1), operand_size(insn, 0)) {
        (false, 2) => by_condition!(c, cmov_reg, u16),
        (false, 4) => by_condition!(c, cmov_reg, u32),
        (false, _) => by_condition!(c, cmov_reg, u64),
        (true, 2) => by_condition!(c, cmov_mem, u16),
        (true, 4) => by_condition!(c, cmov_mem, u32),
        (true, _) => by_condition!(c, cmov_mem, u64),
    };
    true
}
