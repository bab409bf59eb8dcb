//! Operands of system instructions, taken from the decoded instruction.

use crate::block::Op;
use crate::block::decode::gpr_number;
use crate::cpu::Cpu;
use crate::fault::Result;
use crate::int::Int;
use crate::regs::ZERO;
use iced_x86::OpKind;

/// The number of a general-register operand.
pub(super) fn register(op: &Op, operand: u32) -> u8 {
    gpr_number(op.insn().op_register(operand)).unwrap_or(ZERO as u8)
}

/// Whether an operand is in memory.
pub(super) fn is_memory(op: &Op, operand: u32) -> bool {
    op.insn().op_kind(operand) == OpKind::Memory
}

impl Cpu {
    /// Reads a register or memory operand; of a register the low `T::BYTES`.
    pub(super) fn operand<T: Int>(&mut self, op: &Op, operand: u32) -> Result<T> {
        if is_memory(op, operand) {
            let linear = op.linear(self, T::BYTES, false)?;
            return self.read(linear);
        }
        Ok(self.regs.get(register(op, operand)))
    }

    /// Writes a 16-bit value to a memory operand, or `wide`, cut to the register's size, to a register:
    /// how SLDT, STR, SMSW and MOV from a segment register store.
    pub(super) fn store_word(&mut self, op: &Op, wide: u64) -> Result<()> {
        if is_memory(op, 0) {
            let linear = op.linear(self, 2, true)?;
            return self.write(linear, wide as u16);
        }
        let number = register(op, 0);
        match op.insn().op0_register().size() {
            2 => self.regs.set(number, wide as u16),
            4 => self.regs.set(number, wide as u32),
            _ => self.regs.set(number, wide),
        }
        Ok(())
    }
}
