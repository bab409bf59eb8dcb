//! Handlers of system instructions, exceptions and interrupts.
//!
//! Each file is one subject. [`descriptor`], [`stack`] and [`operand`] hold what the others share.
//! Handlers check first and change afterwards, so that a fault leaves everything as it was.

mod control;
mod cpuid;
mod debug;
mod descriptor;
mod flags;
mod hypercall;
mod interrupt;
mod io;
mod iret;
mod msr;
mod operand;
mod reset;
mod segment;
mod stack;
mod state;
mod syscall;
mod tables;
mod task;
#[cfg(test)]
mod tests;
mod transfer;
mod xsave_image;

use crate::block::{Detail, Op};
use crate::cpu::Cpu;
use crate::fault::Fault;
use iced_x86::Instruction;

/// Whether the block goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The next instruction may stand in the same block.
    Continues,
    /// Mode, translations, interruptibility or the place to go on at may have changed.
    Ends,
}

/// Chooses the handler of an instruction and completes `op`; false when there is none here.
pub(crate) fn select(_cpu: &mut Cpu, insn: &Instruction, op: &mut Op) -> bool {
    let found = segment::handler(insn)
        .or_else(|| flags::handler(insn))
        .or_else(|| control::handler(insn))
        .or_else(|| syscall::handler(insn))
        .or_else(|| iret::handler(insn))
        .or_else(|| interrupt::handler(insn))
        .or_else(|| io::handler(insn))
        .or_else(|| msr::handler(insn))
        .or_else(|| cpuid::handler(insn))
        .or_else(|| transfer::handler(insn))
        .or_else(|| tables::handler(insn))
        .or_else(|| debug::handler(insn))
        .or_else(|| hypercall::handler(insn));
    let Some((handler, after)) = found else { return false };
    op.run = handler;
    // None of them may be locked; the decoder refuses the prefix where it knows.
    if insn.has_lock_prefix() {
        op.run = |_, _| Err(Fault::UNDEFINED);
    }
    op.ends_block = after == After::Ends;
    op.detail = Some(Box::new(Detail { insn: *insn, stub: None }));
    true
}
