//! Handlers of the common integer instructions.

use crate::block::Op;
use crate::cpu::Cpu;
use iced_x86::Instruction;

/// Chooses the handler of an instruction and completes `op`; false when there is none here.
pub(crate) fn select(_cpu: &mut Cpu, _insn: &Instruction, _op: &mut Op) -> bool {
    false
}
