//! The x87 unit and MMX.
//!
//! The guest's x87 state is the FXSAVE image in `Regs`. A host function loads it, executes one
//! instruction with the guest's own control word, and saves it. An unmasked exception shows in the
//! status word and is raised, as on a processor, by the next instruction that waits for it; the host
//! never sees one pending, for functions end with FNINIT and do not start while one is.

use super::{Stub, float};
use crate::block::Op;
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::{RIP, Regs};
use x86::Vector;
use x86::reg::cr0;

/// Offsets in the FXSAVE64 image (SDM vol. 1, table 10-2).
pub(super) mod image {
    pub(in super::super) const CONTROL: usize = 0;
    pub(in super::super) const STATUS: usize = 2;
    pub(in super::super) const TAGS: usize = 4;
    pub(in super::super) const OPCODE: usize = 6;
    pub(in super::super) const INSTRUCTION: usize = 8;
    pub(in super::super) const DATA: usize = 16;
    pub(in super::super) const REGISTERS: usize = 32;
}

/// Exception flags of the status word, and masks of the control word.
const EXCEPTIONS: u16 = 0x3f;
const PRECISION: u16 = 0x20;
/// Exception summary and its copy, "busy".
const SUMMARY: u16 = 0x8080;
/// MXCSR while an instruction executes that does not use it.
const QUIET_MXCSR: u32 = 0x1f80;

pub(super) fn word(regs: &Regs, at: usize) -> u16 {
    u16::from_le_bytes([regs.fx[at], regs.fx[at + 1]])
}

pub(super) fn set_word(regs: &mut Regs, at: usize, value: u16) {
    regs.fx[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Exceptions that are flagged and not masked.
#[inline(always)]
fn unmasked(regs: &Regs) -> u16 {
    word(regs, image::STATUS) & !word(regs, image::CONTROL) & EXCEPTIONS
}

/// Makes the summary bits agree with flags and masks.
pub(super) fn update_summary(regs: &mut Regs) {
    let status = word(regs, image::STATUS) & !SUMMARY;
    let summary = if unmasked(regs) != 0 { SUMMARY } else { 0 };
    set_word(regs, image::STATUS, status | summary);
}

/// Raises a pending exception before an instruction that waits for it. With CR0.NE clear a processor
/// would signal it through a pin that modern machines do not connect; here it is then ignored, as with
/// IGNNE# asserted.
#[inline(always)]
pub(super) fn check_pending(cpu: &Cpu) -> Result<()> {
    if unmasked(&cpu.regs) != 0 && cpu.sys.cr0 & cr0::NE != 0 {
        return Err(Fault::new(Vector::X87FloatingPoint));
    }
    Ok(())
}

/// Calls a host function of an x87 or MMX instruction; whether a memory destination was written.
pub(super) fn invoke(cpu: &mut Cpu, op: &Op, stub: &Stub, memory: *mut u8, arithmetic: bool) -> Result<bool> {
    let mut pointers = [0; 18];
    pointers.copy_from_slice(&cpu.regs.fx[image::OPCODE..image::DATA + 8]);
    if arithmetic && stub.sets_pointers {
        let instruction = cpu.regs.r[RIP].wrapping_sub(op.len as u64);
        let at = image::INSTRUCTION - image::OPCODE;
        pointers[at..at + 8].copy_from_slice(&instruction.to_le_bytes());
        if stub.size != 0 {
            let at = image::DATA - image::OPCODE;
            pointers[at..at + 8].copy_from_slice(&op.address(cpu).to_le_bytes());
        }
    }
    let ignored = unmasked(&cpu.regs);
    if ignored != 0 {
        let status = word(&cpu.regs, image::STATUS) & !(ignored | SUMMARY);
        set_word(&mut cpu.regs, image::STATUS, status);
    }
    let result = match stub.mxcsr {
        true => float::invoke(cpu, stub, memory),
        false => {
            float::set_image_mxcsr(&mut cpu.regs, QUIET_MXCSR);
            stub.call(&mut cpu.regs, memory);
            Ok(())
        }
    };
    let raised = unmasked(&cpu.regs);
    if ignored != 0 {
        let status = word(&cpu.regs, image::STATUS) | ignored | SUMMARY;
        set_word(&mut cpu.regs, image::STATUS, status);
    }
    // The host's own pointers lead to the host function.
    cpu.regs.fx[image::OPCODE..image::DATA + 8].copy_from_slice(&pointers);
    result?;
    // A store with an unmasked exception does not happen, except that a rounded result is stored.
    Ok(!arithmetic || raised & !PRECISION == 0)
}
