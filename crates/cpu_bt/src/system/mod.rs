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
pub(crate) mod syscall;
mod tables;
mod task;
#[cfg(test)]
mod tests;
mod transfer;
mod watch;
mod xsave_image;

use crate::block::{Detail, Op};
use crate::fault::Fault;
use crate::vm::VmShared;
use iced_x86::{Instruction, Mnemonic};
use std::rc::Rc;

/// Whether the block goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The next instruction may stand in the same block.
    Continues,
    /// Mode, translations, interruptibility or the place to go on at may have changed.
    Ends,
}

/// Chooses the handler of an instruction and completes `op`; false when there is none here.
pub(crate) fn select(vm: &VmShared, insn: &Instruction, op: &mut Op) -> bool {
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
    // None of them may be locked; the decoder refuses the prefix where it knows.
    op.run = match insn.has_lock_prefix() || !exists(vm, insn) {
        false => handler,
        true => |_, _| Err(Fault::UNDEFINED),
    };
    op.ends_block = after == After::Ends;
    op.detail = Some(Rc::new(Detail { insn: *insn, stub: None }));
    true
}

/// Whether the guest's processor has an instruction, where a CPUID bit says so and no control register
/// has to be set that depends on it.
pub(crate) fn exists(vm: &VmShared, insn: &Instruction) -> bool {
    use Mnemonic::*;
    let (register, bit) = match insn.mnemonic() {
        Rdtscp => (vm.cpuid_leaf(0x8000_0001, 0).edx, 27),
        Rdpid => (vm.cpuid_leaf(7, 0).ecx, 22),
        Invpcid => (vm.cpuid_leaf(7, 0).ebx, 10),
        Clac | Stac => (vm.cpuid_leaf(7, 0).ebx, 20),
        Clflush => (vm.cpuid_leaf(1, 0).edx, 19),
        Clflushopt => (vm.cpuid_leaf(7, 0).ebx, 23),
        Clwb => (vm.cpuid_leaf(7, 0).ebx, 24),
        _ => return true,
    };
    register >> bit & 1 != 0
}
