//! Debug registers and instruction breakpoints (SDM vol. 3B, chapter 18).

use super::After::{self, *};
use super::operand::register;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use iced_x86::{Code, Instruction};
use x86::Vector;
use x86::reg::{cr4, dr6, dr7, rflags};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    Some(match insn.code() {
        Code::Mov_r32_dr | Code::Mov_r64_dr => (read_debug, Continues),
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => (write_debug, Ends),
        _ => return None,
    })
}

/// Bits of DR6 that software can set.
const DR6_WRITABLE: u64 = 0xf | dr6::BD | dr6::BS | dr6::BT;
/// Bits of DR7 that software can set: enables, exactness, detection, conditions and lengths.
const DR7_WRITABLE: u64 = 0xffff_23ff;

/// The number of the debug register of an operand, after the checks common to reading and writing.
fn checked_number(cpu: &mut Cpu, op: &Op, operand: u32) -> Result<usize> {
    let number = op.insn().op_register(operand).number();
    let aliased = matches!(number, 4 | 5);
    if number > 7 || (aliased && cpu.sys.cr4 & cr4::DE != 0) {
        return Err(Fault::UNDEFINED);
    }
    cpu.require_cpl0()?;
    if cpu.sys.dr7 & dr7::GD != 0 {
        cpu.sys.dr6 |= dr6::BD;
        return Err(Fault::new(Vector::Debug));
    }
    Ok(if aliased { number + 2 } else { number })
}

fn read_debug(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = match checked_number(cpu, op, 1)? {
        6 => cpu.sys.dr6,
        7 => cpu.sys.dr7,
        number => cpu.sys.dr[number],
    };
    match op.insn().code() {
        Code::Mov_r32_dr => cpu.regs.set(register(op, 0), value as u32),
        _ => cpu.regs.set(register(op, 0), value),
    }
    Ok(Flow::Next)
}

fn write_debug(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let number = checked_number(cpu, op, 0)?;
    let value = match op.insn().code() {
        Code::Mov_dr_r32 => cpu.regs.get::<u32>(register(op, 1)) as u64,
        _ => cpu.regs.get::<u64>(register(op, 1)),
    };
    if number >= 6 && value >> 32 != 0 {
        return Err(Fault::GP0);
    }
    match number {
        6 => cpu.sys.dr6 = clean_dr6(value),
        7 => cpu.sys.dr7 = clean_dr7(value),
        _ => cpu.sys.dr[number] = value,
    }
    Ok(Flow::Next)
}

/// DR6 as it reads after a value is written.
pub(super) fn clean_dr6(value: u64) -> u64 {
    value & DR6_WRITABLE | dr6::FIXED
}

/// DR7 as it reads after a value is written.
pub(super) fn clean_dr7(value: u64) -> u64 {
    value & DR7_WRITABLE | dr7::FIXED
}

impl Cpu {
    /// Whether an instruction breakpoint is armed, so that each instruction has to be looked at.
    pub(crate) fn has_breakpoints(&self) -> bool {
        self.sys.dr7 & dr7::ENABLES != 0 && (0..4).any(|index| self.is_instruction_breakpoint(index))
    }

    fn is_instruction_breakpoint(&self, index: u32) -> bool {
        self.sys.dr7 >> (2 * index) & 3 != 0 && self.sys.dr7 >> (16 + 4 * index) & 3 == 0
    }

    /// Raises #DB when an instruction breakpoint is set on the instruction at `linear`, unless
    /// RFLAGS.RF holds it off; call it before the instruction executes.
    ///
    /// # Errors
    /// #DB, with DR6 saying which breakpoint.
    pub(crate) fn check_breakpoints(&mut self, linear: u64) -> Result<()> {
        if self.regs.flag(rflags::RF) {
            // RF lasts for one instruction.
            self.regs.rflags &= !rflags::RF;
            return Ok(());
        }
        let mut hit = 0;
        for index in 0..4 {
            if self.is_instruction_breakpoint(index) && self.sys.dr[index as usize] == linear {
                hit |= dr6::B0 << index;
            }
        }
        if hit == 0 {
            return Ok(());
        }
        self.sys.dr6 = self.sys.dr6 & !0xf | hit;
        Err(Fault::new(Vector::Debug))
    }

    /// RF matters only to instruction breakpoints; while none is armed it is not kept, because nothing
    /// clears it after the next instruction.
    pub(super) fn drop_resume_flag(&mut self) {
        if !self.has_breakpoints() {
            self.regs.rflags &= !rflags::RF;
        }
    }
}
