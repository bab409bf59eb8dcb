//! Instructions that execute as themselves on the host.

use crate::block::Op;
use crate::cpu::Cpu;
use iced_x86::Instruction;

/// Host code of one instruction.
pub(crate) struct Stub {}

/// The host code of one vCPU.
pub(crate) struct Stubs {}

impl Stubs {
    pub(crate) fn new() -> Stubs {
        Stubs {}
    }
    pub(crate) fn is_full(&self) -> bool {
        false
    }
    pub(crate) fn clear(&mut self) {}
}

/// Chooses the handler of an instruction and completes `op`; false when it does not execute natively.
pub(crate) fn select(_cpu: &mut Cpu, _insn: &Instruction, _op: &mut Op) -> bool {
    false
}
