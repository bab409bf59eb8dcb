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

/// What a breakpoint register waits for (SDM vol. 3B, figure 18-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Execute,
    Write,
    /// Port input and output; not watched.
    Port,
    ReadOrWrite,
}

/// An armed breakpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Breakpoint {
    pub(super) condition: Condition,
    pub(super) address: u64,
    /// Bytes watched: 1, 2, 4 or 8.
    pub(super) len: u64,
    /// Its bit in DR6.
    pub(super) status: u64,
}

impl Cpu {
    /// Whether a breakpoint is armed, so that each instruction has to be looked at.
    pub(crate) fn has_breakpoints(&self) -> bool {
        self.breakpoints().any(|breakpoint| breakpoint.condition != Condition::Port)
    }

    /// The armed breakpoints.
    pub(super) fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let (dr, dr7) = (self.sys.dr, self.sys.dr7);
        (0..4).filter(move |index| dr7 >> (2 * index) & 3 != 0).map(move |index| {
            let bits = dr7 >> (16 + 4 * index);
            let condition = [Condition::Execute, Condition::Write, Condition::Port, Condition::ReadOrWrite];
            let len = [1, 2, 8, 4][(bits >> 2 & 3) as usize];
            Breakpoint {
                condition: condition[(bits & 3) as usize],
                // The address is aligned to the length.
                address: dr[index as usize] & !(len - 1),
                len,
                status: dr6::B0 << index,
            }
        })
    }

    /// Does what armed breakpoints ask for at the instruction at `linear`. Call it before the
    /// instruction executes, while [`Cpu::has_breakpoints`].
    ///
    /// # Errors
    /// #DB, with DR6 saying which breakpoint: before the instruction where it is set on its execution
    /// (unless RFLAGS.RF holds that off), after it where it has accessed watched data. In the second
    /// case the instruction has been executed and RIP is past it. Or what the instruction raised.
    pub(crate) fn check_breakpoints(&mut self, linear: u64) -> Result<()> {
        let resumed = self.regs.flag(rflags::RF);
        // RF lasts for one instruction.
        self.regs.rflags &= !rflags::RF;
        let on_execution = |breakpoint: &Breakpoint| {
            breakpoint.condition == Condition::Execute && breakpoint.address == linear
        };
        let hit = match resumed {
            true => 0,
            false => self.breakpoints().filter(on_execution).fold(0, |hit, one| hit | one.status),
        };
        if hit != 0 {
            self.sys.dr6 = self.sys.dr6 & !0xf | hit;
            return Err(Fault::new(Vector::Debug));
        }
        self.execute_watched(linear)
    }

    /// RF matters only to instruction breakpoints; while none is armed it is not kept, because nothing
    /// clears it after the next instruction.
    pub(super) fn drop_resume_flag(&mut self) {
        if !self.has_breakpoints() {
            self.regs.rflags &= !rflags::RF;
        }
    }
}
