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
use iced_x86::{CodeSize, CpuidFeature, Encoder, Instruction, Mnemonic};
use x86::Vector;
use x86::reg::cr0;
use x86::state::seg;

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
pub(super) const EXCEPTIONS: u16 = 0x3f;
const PRECISION: u16 = 0x20;
/// Exception summary and its copy, "busy".
const SUMMARY: u16 = 0x8080;
/// The control word after FNINIT.
const INITIAL_CONTROL: u16 = 0x037f;
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

/// The register on top of the stack.
fn top(regs: &Regs) -> usize {
    (word(regs, image::STATUS) >> 11 & 7) as usize
}

/// Replaces the control word. Bits that are not implemented read as they do on a processor.
pub(super) fn set_control(regs: &mut Regs, value: u16) {
    set_word(regs, image::CONTROL, value & 0x1f3f | 0x40);
}

/// Replaces the status word. The image holds the registers in the order of the stack: a new top turns
/// them.
pub(super) fn set_status(regs: &mut Regs, value: u16) {
    let old = top(regs);
    set_word(regs, image::STATUS, value);
    let turn = (top(regs) + 8 - old) % 8;
    regs.fx[image::REGISTERS..image::REGISTERS + 128].rotate_left(16 * turn);
}

/// Two bits for each register, as the environment has them (SDM vol. 1, §8.1.7): valid, zero, special,
/// empty.
pub(super) fn full_tags(regs: &Regs) -> u16 {
    let tag = |register: usize| {
        if regs.fx[image::TAGS] >> register & 1 == 0 {
            return 3;
        }
        let at = image::REGISTERS + 16 * ((register + 8 - top(regs)) % 8);
        let mantissa = u64::from_le_bytes(regs.fx[at..at + 8].try_into().expect("8 bytes"));
        match word(regs, at + 8) & 0x7fff {
            0 if mantissa == 0 => 1,
            0 | 0x7fff => 2,
            // Without the integer bit: a format that is not supported.
            _ if mantissa >> 63 == 0 => 2,
            _ => 0,
        }
    };
    (0..8).fold(0, |tags, register| tags | tag(register) << (2 * register))
}

/// Takes the tags of an environment: only "empty" counts.
pub(super) fn set_full_tags(regs: &mut Regs, tags: u16) {
    let present = (0..8).filter(|register| tags >> (2 * register) & 3 != 3);
    regs.fx[image::TAGS] = present.fold(0, |bits, register| bits | 1 << register);
}

/// FNINIT: the registers keep their contents.
pub(super) fn initialize(regs: &mut Regs) {
    set_status(regs, 0);
    set_word(regs, image::CONTROL, INITIAL_CONTROL);
    regs.fx[image::TAGS] = 0;
    regs.fx[image::OPCODE..image::DATA + 8].fill(0);
}

/// The initial state of the unit, registers and all.
pub(super) fn reset(regs: &mut Regs) {
    initialize(regs);
    regs.fx[image::REGISTERS..image::REGISTERS + 128].fill(0);
}

/// FNCLEX.
pub(super) fn clear_exceptions(regs: &mut Regs) {
    let status = word(regs, image::STATUS) & !0x80ff;
    set_word(regs, image::STATUS, status);
}

/// An MMX register.
pub(super) fn mmx(regs: &Regs, number: usize) -> [u8; 8] {
    let at = image::REGISTERS + 16 * ((number + 8 - top(regs)) % 8);
    regs.fx[at..at + 8].try_into().expect("8 bytes")
}

/// What every MMX instruction but EMMS does: the stack begins at register 0 and is full.
pub(super) fn enter_mmx(regs: &mut Regs) {
    set_status(regs, word(regs, image::STATUS) & !0x3800);
    regs.fx[image::TAGS] = 0xff;
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

/// What the unit remembers of the opcode of an instruction (SDM vol. 1, §8.1.9); nothing of those that
/// control it.
pub(super) fn remembered_opcode(insn: &Instruction) -> Option<u16> {
    use CpuidFeature::{FPU, FPU287, FPU387};
    if !insn.cpuid_features().iter().any(|feature| matches!(feature, FPU | FPU287 | FPU387))
        || insn.mnemonic() == Mnemonic::Fldcw
    {
        return None;
    }
    // As an assembler would have encoded it.
    let mut encoder = Encoder::new(match insn.code_size() {
        CodeSize::Code16 => 16,
        CodeSize::Code32 => 32,
        _ => 64,
    });
    encoder.encode(insn, insn.ip()).ok()?;
    let bytes = encoder.take_buffer();
    let escape = bytes.iter().position(|byte| (0xd8..=0xdf).contains(byte))?;
    Some((bytes[escape] as u16 & 7) << 8 | *bytes.get(escape + 1)? as u16)
}

/// Calls a host function of an x87 or MMX instruction; whether a memory destination was written.
pub(super) fn invoke(cpu: &mut Cpu, op: &Op, stub: &Stub, memory: *mut u8, arithmetic: bool) -> Result<bool> {
    let mut pointers = [0; 18];
    pointers.copy_from_slice(&cpu.regs.fx[image::OPCODE..image::DATA + 8]);
    if let Some(opcode) = stub.opcode {
        pointers[..2].copy_from_slice(&opcode.to_le_bytes());
        // In real mode there are linear addresses in place of offsets (SDM vol. 1, §8.1.8).
        let base = |segment: usize| if cpu.mode.is_real_like() { cpu.regs.seg[segment].base } else { 0 };
        let instruction = cpu.regs.r[RIP].wrapping_sub(op.len as u64).wrapping_add(base(seg::CS));
        let at = image::INSTRUCTION - image::OPCODE;
        pointers[at..at + 8].copy_from_slice(&instruction.to_le_bytes());
        if stub.size != 0 {
            let data = op.address(cpu).wrapping_add(base(op.segment as usize));
            let at = image::DATA - image::OPCODE;
            pointers[at..at + 8].copy_from_slice(&data.to_le_bytes());
        }
    }
    let ignored = unmasked(&cpu.regs);
    // The host must not find anything pending, not even a summary without a cause.
    let status = word(&cpu.regs, image::STATUS);
    if status & SUMMARY != 0 || ignored != 0 {
        set_word(&mut cpu.regs, image::STATUS, status & !(ignored | SUMMARY));
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
    let insn = op.insn();
    if result.is_err() && (0..insn.op_count()).any(|operand| insn.op_register(operand).is_mm()) {
        // The SIMD exception of a conversion comes after the unit has turned to MMX.
        enter_mmx(&mut cpu.regs);
    }
    result?;
    // A store with an unmasked exception does not happen, except that a rounded result is stored.
    Ok(!arithmetic || raised & !PRECISION == 0)
}
