//! Handlers of system instructions, exceptions and interrupts.

use crate::block::Op;
use crate::cpu::Cpu;
use crate::fault::Fault;
use ::cpu::Error;
use iced_x86::Instruction;
use x86::CpuState;

/// Chooses the handler of an instruction and completes `op`; false when there is none here.
pub(crate) fn select(_cpu: &mut Cpu, _insn: &Instruction, _op: &mut Op) -> bool {
    false
}

impl Cpu {
    /// Raises the exception that an instruction (or block lookup) ended with: delivers it through the
    /// IDT, turning it into double faults and shutdown as the manual says. `Fault::LEAVE` does nothing.
    pub(crate) fn raise(&mut self, _fault: Fault) {}
    /// Delivers an external interrupt.
    pub(crate) fn deliver_interrupt(&mut self, _vector: u8) {}
    pub(crate) fn deliver_nmi(&mut self) {}
    /// #DB after an instruction executed with RFLAGS.TF set.
    pub(crate) fn single_step_trap(&mut self) {}
    /// The INIT message: reset, then wait for start-up (the bootstrap processor runs on).
    pub(crate) fn init_message(&mut self) {}
    pub(crate) fn startup_message(&mut self) {}
    pub(crate) fn save(&mut self) -> CpuState {
        unreachable!()
    }
    pub(crate) fn restore(&mut self, _state: &CpuState) -> Result<(), Error> {
        Ok(())
    }
}
