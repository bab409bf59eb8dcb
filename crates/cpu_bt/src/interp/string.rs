//! String instructions, with and without repetition.
//!
//! A repeated move or fill advances by as much as lies in one page on each side, with the host's own
//! `rep` instruction; after each such piece the registers say how far it came, so that a fault or an
//! interrupt in the middle continues where it stopped.

use super::*;
use crate::cpu::BlockKey;
use crate::fault::Result;
use crate::mmu::tlb::MmuIndex;
use crate::regs::{FLAT, RAX, RCX, RDI, RIP, RSI};
use crate::signals::signal;
use std::arch::asm;
use x86::state::seg;

/// [`Op::src`]: no repetition, REP/REPE, REPNE.
const ONCE: u8 = 0;
const REPE: u8 = 1;
const REPNE: u8 = 2;

/// What of a repeated instruction has to be done still.
enum Progress {
    /// It is complete.
    Done,
    /// Interrupts are waiting, or a piece of fair size is done: come back to the same instruction.
    Again,
}

/// Pieces after which a repeated instruction looks for interrupts.
const PIECES_MAX: u32 = 64;

#[inline(always)]
fn cut(op: &Op, value: u64) -> u64 {
    value << op.address_cut >> op.address_cut
}

/// Adds to RSI, RDI or RCX with the instruction's address size.
#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, register: usize, by: u64) {
    let value = cpu.regs.r[register].wrapping_add(by);
    match op.address_cut {
        0 => cpu.regs.r[register] = value,
        32 => cpu.regs.r[register] = value & 0xffff_ffff,
        _ => cpu.regs.set(register as u8, value as u16),
    }
}

/// The signed distance to the next element.
#[inline(always)]
fn stride<T: Int>(cpu: &Cpu) -> u64 {
    if cpu.regs.flag(rflags::DF) { (T::BYTES as u64).wrapping_neg() } else { T::BYTES as u64 }
}

#[inline(always)]
fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<u64> {
    let offset = cut(op, cpu.regs.r[RSI]);
    cpu.linear(op.segment, offset, T::BYTES, false)
}

#[inline(always)]
fn destination<T: Int>(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64> {
    let offset = cut(op, cpu.regs.r[RDI]);
    let segment = if cpu.mode.is_64() { FLAT } else { seg::ES };
    cpu.linear(segment as u8, offset, T::BYTES, write)
}

/// How many elements from linear address `linear` on lie in its page, going up.
fn in_page<T: Int>(linear: u64) -> u64 {
    (0x1000 - linear % 0x1000) / T::BYTES as u64
}

/// Ends or continues a repeated instruction.
fn repeat(cpu: &mut Cpu, op: &Op, f: impl Fn(&mut Cpu) -> Result<Option<Progress>>) -> Result<Flow> {
    for _ in 0..PIECES_MAX {
        match f(cpu)? {
            Some(Progress::Done) => return Ok(Flow::Next),
            Some(Progress::Again) => break,
            None => {}
        }
        if cpu.guard.active() {
            // Two executions of the same code have to end at the same element.
            continue;
        }
        let pending = cpu.signals.pending();
        let interrupted = pending & !signal::INTERRUPT != 0
            || pending != 0 && cpu.regs.flag(rflags::IF)
            || cpu.code_modified;
        // The trap of TF comes after every element (SDM vol. 3B, §17.3.1.4).
        if interrupted || cpu.regs.flag(rflags::TF) {
            break;
        }
    }
    // Back to this instruction; the loop outside sees to events first.
    cpu.regs.r[RIP] = cpu.regs.r[RIP].wrapping_sub(op.len as u64);
    Ok(Flow::Branch)
}

/// Whether elements going up in a page stay in their segment: always so in 64-bit code and in flat segments;
/// elsewhere only single elements are trusted to [`Cpu::linear`]. Where alignment is checked, it is that
/// of each element.
fn may_batch(cpu: &Cpu, op: &Op) -> bool {
    let flat = match op.address_cut {
        0 => cpu.mode.is_64(),
        32 => [seg::DS, seg::ES, seg::SS].contains(&(op.segment as usize)) && cpu.is_flat(),
        _ => false,
    };
    flat && !cpu.regs.flag(rflags::DF) && !cpu.regs.flag(rflags::TF) && cpu.mode.data != MmuIndex::UserAligned
}

fn movs_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let from = source::<T>(cpu, op)?;
    let value = cpu.read::<T>(from)?;
    let to = destination::<T>(cpu, op, true)?;
    cpu.write(to, value)?;
    let step = stride::<T>(cpu);
    advance(cpu, op, RSI, step);
    advance(cpu, op, RDI, step);
    Ok(())
}

/// Moves as many elements as lie in one page on both sides; how many, or none if it has to be done one
/// by one.
fn movs_batch<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64> {
    if !may_batch(cpu, op) {
        return Ok(0);
    }
    let (from, to) = (source::<T>(cpu, op)?, destination::<T>(cpu, op, true)?);
    let count = count.min(in_page::<T>(from)).min(in_page::<T>(to));
    if count < 2 {
        return Ok(0);
    }
    let bytes = count as usize * T::BYTES;
    let (Some(source), Some(target)) = (cpu.host_for_read(from, bytes)?, cpu.host_for_write(to, bytes)?)
    else {
        return Ok(0);
    };
    // SAFETY: both pointers are good for `bytes` bytes of guest memory.
    unsafe {
        match T::BYTES {
            1 => {
                asm!("rep movsb", inout("rcx") count => _, inout("rsi") source => _, inout("rdi") target => _)
            }
            2 => {
                asm!("rep movsw", inout("rcx") count => _, inout("rsi") source => _, inout("rdi") target => _)
            }
            4 => {
                asm!("rep movsd", inout("rcx") count => _, inout("rsi") source => _, inout("rdi") target => _)
            }
            _ => {
                asm!("rep movsq", inout("rcx") count => _, inout("rsi") source => _, inout("rdi") target => _)
            }
        }
    }
    advance(cpu, op, RSI, bytes as u64);
    advance(cpu, op, RDI, bytes as u64);
    Ok(count)
}

fn movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    if op.src == ONCE {
        movs_one::<T>(cpu, op)?;
        return Ok(Flow::Next);
    }
    repeat(cpu, op, |cpu| {
        let count = cut(op, cpu.regs.r[RCX]);
        if count == 0 {
            return Ok(Some(Progress::Done));
        }
        let mut done = movs_batch::<T>(cpu, op, count)?;
        if done == 0 {
            movs_one::<T>(cpu, op)?;
            done = 1;
        }
        advance(cpu, op, RCX, done.wrapping_neg());
        Ok((done == count).then_some(Progress::Done))
    })
}

fn stos_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let to = destination::<T>(cpu, op, true)?;
    let value = cpu.regs.get::<T>(RAX as u8);
    cpu.write(to, value)?;
    let step = stride::<T>(cpu);
    advance(cpu, op, RDI, step);
    Ok(())
}

fn stos_batch<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64> {
    if !may_batch(cpu, op) {
        return Ok(0);
    }
    let to = destination::<T>(cpu, op, true)?;
    let count = count.min(in_page::<T>(to));
    if count < 2 {
        return Ok(0);
    }
    let bytes = count as usize * T::BYTES;
    let Some(target) = cpu.host_for_write(to, bytes)? else { return Ok(0) };
    let value = cpu.regs.r[RAX];
    // SAFETY: the pointer is good for `bytes` bytes of guest memory.
    unsafe {
        match T::BYTES {
            1 => asm!("rep stosb", inout("rcx") count => _, inout("rdi") target => _, in("rax") value),
            2 => asm!("rep stosw", inout("rcx") count => _, inout("rdi") target => _, in("rax") value),
            4 => asm!("rep stosd", inout("rcx") count => _, inout("rdi") target => _, in("rax") value),
            _ => asm!("rep stosq", inout("rcx") count => _, inout("rdi") target => _, in("rax") value),
        }
    }
    advance(cpu, op, RDI, bytes as u64);
    Ok(count)
}

fn stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    if op.src == ONCE {
        stos_one::<T>(cpu, op)?;
        return Ok(Flow::Next);
    }
    repeat(cpu, op, |cpu| {
        let count = cut(op, cpu.regs.r[RCX]);
        if count == 0 {
            return Ok(Some(Progress::Done));
        }
        let mut done = stos_batch::<T>(cpu, op, count)?;
        if done == 0 {
            stos_one::<T>(cpu, op)?;
            done = 1;
        }
        advance(cpu, op, RCX, done.wrapping_neg());
        Ok((done == count).then_some(Progress::Done))
    })
}

fn lods_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let from = source::<T>(cpu, op)?;
    let value = cpu.read::<T>(from)?;
    cpu.regs.set(RAX as u8, value);
    let step = stride::<T>(cpu);
    advance(cpu, op, RSI, step);
    Ok(())
}

fn scas_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let to = destination::<T>(cpu, op, false)?;
    let value = cpu.read::<T>(to)?;
    let (_, ax) = cpu.regs.get::<T>(RAX as u8).sub(value);
    cpu.regs.set_status(ax, rflags::STATUS);
    let step = stride::<T>(cpu);
    advance(cpu, op, RDI, step);
    Ok(())
}

fn cmps_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<()> {
    let from = source::<T>(cpu, op)?;
    if cpu.mode.data == MmuIndex::UserAligned {
        // Of both operands, before either is read.
        let to = destination::<T>(cpu, op, false)?;
        cpu.check_alignment(to, T::BYTES)?;
    }
    let a = cpu.read::<T>(from)?;
    let to = destination::<T>(cpu, op, false)?;
    let b = cpu.read::<T>(to)?;
    let (_, ax) = a.sub(b);
    cpu.regs.set_status(ax, rflags::STATUS);
    let step = stride::<T>(cpu);
    advance(cpu, op, RSI, step);
    advance(cpu, op, RDI, step);
    Ok(())
}

const LODS: u8 = 0;
const SCAS: u8 = 1;
const CMPS: u8 = 2;

/// LODS, SCAS and CMPS go element by element.
fn scan<const K: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let one = |cpu: &mut Cpu| match K {
        LODS => lods_one::<T>(cpu, op),
        SCAS => scas_one::<T>(cpu, op),
        _ => cmps_one::<T>(cpu, op),
    };
    if op.src == ONCE {
        one(cpu)?;
        return Ok(Flow::Next);
    }
    repeat(cpu, op, |cpu| {
        for _ in 0..64 {
            if cut(op, cpu.regs.r[RCX]) == 0 {
                return Ok(Some(Progress::Done));
            }
            one(cpu)?;
            advance(cpu, op, RCX, u64::MAX);
            let ends = match op.src {
                _ if K == LODS => false,
                REPE => !cpu.regs.flag(rflags::ZF),
                _ => cpu.regs.flag(rflags::ZF),
            };
            if ends {
                return Ok(Some(Progress::Done));
            }
            if cpu.regs.flag(rflags::TF) {
                return Ok(Some(Progress::Again));
            }
        }
        Ok(None)
    })
}

pub(super) fn select(insn: &Instruction, op: &mut Op, key: BlockKey) -> bool {
    use OpKind::*;
    let mut size = 0;
    for operand in 0..insn.op_count() {
        let kind = insn.op_kind(operand);
        op.address_cut = match kind {
            MemorySegSI | MemoryESDI | MemorySegDI => 48,
            MemorySegESI | MemoryESEDI | MemorySegEDI => 32,
            MemorySegRSI | MemoryESRDI | MemorySegRDI => 0,
            _ => continue,
        };
        size = insn.memory_size().size();
    }
    if size == 0 {
        // The SSE2 instruction of the same name as MOVSD or CMPSD.
        return false;
    }
    let segment = crate::block::decode::segment_number(insn.memory_segment());
    let flat = key.is_64() && !matches!(segment as usize, seg::FS | seg::GS);
    op.segment = if flat { FLAT as u8 } else { segment };
    op.src = match () {
        _ if insn.has_repne_prefix() => REPNE,
        _ if insn.has_rep_prefix() || insn.has_repe_prefix() => REPE,
        _ => ONCE,
    };
    // A repeated one may come back to itself, so the block ends with it.
    op.ends_block = op.src != ONCE;
    op.run = match insn.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => by_size!(size, movs),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => by_size!(size, stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => by_size!(size, scan, LODS),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => by_size!(size, scan, SCAS),
        _ => by_size!(size, scan, CMPS),
    };
    true
}
