//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and what calls and interrupts use.

use super::*;
use crate::fault::Result;
use crate::regs::{RBP, RSP};
use x86::state::seg;

/// Cuts a stack offset to the size of the stack pointer.
#[inline(always)]
fn cut(cpu: &Cpu, offset: u64) -> u64 {
    match cpu.mode.stack_bits {
        64 => offset,
        32 => offset & 0xffff_ffff,
        _ => offset & 0xffff,
    }
}

/// Sets as much of RSP as the size of the stack pointer says.
#[inline(always)]
pub(crate) fn set_pointer(cpu: &mut Cpu, offset: u64) {
    match cpu.mode.stack_bits {
        64 => cpu.regs.r[RSP] = offset,
        32 => cpu.regs.set(RSP as u8, offset as u32),
        _ => cpu.regs.set(RSP as u8, offset as u16),
    }
}

/// Adds to the stack pointer.
pub(crate) fn move_pointer(cpu: &mut Cpu, by: u64) {
    let offset = cut(cpu, cpu.regs.r[RSP].wrapping_add(by));
    set_pointer(cpu, offset);
}

/// Pushes an integer; nothing has changed when it faults.
#[inline(always)]
pub(crate) fn push<T: Int>(cpu: &mut Cpu, value: T) -> Result<()> {
    let offset = cut(cpu, cpu.regs.r[RSP].wrapping_sub(T::BYTES as u64));
    let linear = cpu.linear(seg::SS as u8, offset, T::BYTES, true)?;
    cpu.write(linear, value)?;
    set_pointer(cpu, offset);
    Ok(())
}

/// Pops an integer; nothing has changed when it faults.
#[inline(always)]
pub(crate) fn pop<T: Int>(cpu: &mut Cpu) -> Result<T> {
    let value = peek(cpu, 0)?;
    move_pointer(cpu, T::BYTES as u64);
    Ok(value)
}

/// Reads the stack `distance` bytes above its top.
#[inline(always)]
pub(crate) fn peek<T: Int>(cpu: &mut Cpu, distance: u64) -> Result<T> {
    let offset = cut(cpu, cpu.regs.r[RSP].wrapping_add(distance));
    let linear = cpu.linear(seg::SS as u8, offset, T::BYTES, false)?;
    cpu.read(linear)
}

fn push_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = cpu.regs.get::<T>(op.dst);
    push(cpu, value)?;
    Ok(Flow::Next)
}

fn push_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    push(cpu, T::from_u64(op.imm))?;
    Ok(Flow::Next)
}

fn push_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = load::<T>(cpu, op)?;
    push(cpu, value)?;
    Ok(Flow::Next)
}

pub(super) fn select_push(insn: &Instruction, op: &mut Op) -> bool {
    if is_segment_or_special(insn) {
        return false;
    }
    let size = insn.stack_pointer_increment().unsigned_abs();
    op.run = match insn.op0_kind() {
        OpKind::Register => by_size!(size, push_reg),
        OpKind::Memory => by_size!(size, push_mem),
        _ => by_size!(size, push_imm),
    };
    true
}

fn pop_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = pop::<T>(cpu)?;
    cpu.regs.set(op.dst, value);
    Ok(Flow::Next)
}

fn pop_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    // An address relative to RSP uses its value after the pop (SDM vol. 2B, "POP").
    let before = cpu.regs.r[RSP];
    let value = pop::<T>(cpu)?;
    if let Err(fault) = store(cpu, op, value) {
        cpu.regs.r[RSP] = before;
        return Err(fault);
    }
    Ok(Flow::Next)
}

pub(super) fn select_pop(insn: &Instruction, op: &mut Op) -> bool {
    if is_segment_or_special(insn) {
        return false;
    }
    let size = insn.stack_pointer_increment();
    op.run = if is_memory(insn, 0) { by_size!(size, pop_mem) } else { by_size!(size, pop_reg) };
    true
}

fn leave<T: Int>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let offset = cut(cpu, cpu.regs.r[RBP]);
    let linear = cpu.linear(seg::SS as u8, offset, T::BYTES, false)?;
    let value = cpu.read::<T>(linear)?;
    let offset = cut(cpu, offset.wrapping_add(T::BYTES as u64));
    set_pointer(cpu, offset);
    cpu.regs.set(RBP as u8, value);
    Ok(Flow::Next)
}

pub(super) fn select_leave(insn: &Instruction, op: &mut Op) -> bool {
    use iced_x86::Code::*;
    op.run = match insn.code() {
        Leavew => leave::<u16>,
        Leaved => leave::<u32>,
        _ => leave::<u64>,
    };
    true
}

fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (size, level) = (op.insn().immediate(0) as u16 as u64, op.insn().immediate(1) as u8 % 32);
    let before = (cpu.regs.r[RSP], cpu.regs.r[RBP]);
    let mut frame_up_to_here = || -> Result<()> {
        let old = cpu.regs.get::<T>(RBP as u8);
        push(cpu, old)?;
        let frame = cpu.regs.r[RSP];
        for back in 1..level as u64 {
            let offset = cut(cpu, cpu.regs.r[RBP].wrapping_sub(back * T::BYTES as u64));
            let linear = cpu.linear(seg::SS as u8, offset, T::BYTES, false)?;
            let display = cpu.read::<T>(linear)?;
            push(cpu, display)?;
        }
        if level > 0 {
            push(cpu, T::from_u64(frame))?;
        }
        // The processor makes sure that the new top of the stack can be written.
        let top = cut(cpu, cpu.regs.r[RSP].wrapping_sub(size));
        let linear = cpu.linear(seg::SS as u8, top, 1, true)?;
        cpu.check_alignment(linear, T::BYTES)?;
        cpu.check_write(linear, 1)?;
        cpu.regs.set(RBP as u8, T::from_u64(frame));
        set_pointer(cpu, top);
        Ok(())
    };
    let result = frame_up_to_here();
    if result.is_err() {
        (cpu.regs.r[RSP], cpu.regs.r[RBP]) = before;
    }
    result.map(|()| Flow::Next)
}

pub(super) fn select_enter(insn: &Instruction, op: &mut Op) -> bool {
    use iced_x86::Code::*;
    with_detail(insn, op);
    op.run = match insn.code() {
        Enterw_imm16_imm8 => enter::<u16>,
        Enterd_imm16_imm8 => enter::<u32>,
        _ => enter::<u64>,
    };
    true
}

fn pusha<T: Int>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let before = cpu.regs.r[RSP];
    for number in 0..8 {
        let value = match number as usize {
            RSP => T::from_u64(before),
            _ => cpu.regs.get::<T>(number),
        };
        if let Err(fault) = push(cpu, value) {
            cpu.regs.r[RSP] = before;
            return Err(fault);
        }
    }
    Ok(Flow::Next)
}

pub(super) fn select_pusha(insn: &Instruction, op: &mut Op) -> bool {
    op.run = if insn.mnemonic() == M::Pusha { pusha::<u16> } else { pusha::<u32> };
    true
}

fn popa<T: Int>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let mut values = [T::from_u64(0); 8];
    for (index, value) in values.iter_mut().enumerate() {
        *value = peek(cpu, (index * T::BYTES) as u64)?;
    }
    for (number, value) in (0..8u8).rev().zip(values) {
        if number as usize != RSP {
            cpu.regs.set(number, value);
        }
    }
    move_pointer(cpu, 8 * T::BYTES as u64);
    Ok(Flow::Next)
}

pub(super) fn select_popa(insn: &Instruction, op: &mut Op) -> bool {
    op.run = if insn.mnemonic() == M::Popa { popa::<u16> } else { popa::<u32> };
    true
}
