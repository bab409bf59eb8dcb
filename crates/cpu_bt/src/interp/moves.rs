//! Moves, extensions, address computation and exchanges.

use super::*;
use crate::cpu::BlockKey;
use crate::fault::Result;
use crate::regs::{FLAT, RAX, RBX, RDX};
use x86::state::seg;

fn reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = cpu.regs.get::<T>(op.src);
    cpu.regs.set(op.dst, value);
    Ok(Flow::Next)
}

fn reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.regs.set(op.dst, T::from_u64(op.imm));
    Ok(Flow::Next)
}

fn reg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = load::<T>(cpu, op)?;
    cpu.regs.set(op.dst, value);
    Ok(Flow::Next)
}

fn mem_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = cpu.regs.get::<T>(op.dst);
    store(cpu, op, value)?;
    Ok(Flow::Next)
}

fn mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    store(cpu, op, T::from_u64(op.imm))?;
    Ok(Flow::Next)
}

/// MOV between general registers, memory and immediates; segment, control and debug registers are
/// system business.
pub(super) fn select_mov(insn: &Instruction, op: &mut Op) -> bool {
    if is_segment_or_special(insn) {
        return false;
    }
    let size = operand_size(insn, 0);
    op.run = match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_size!(size, reg_reg),
        (OpKind::Register, OpKind::Memory) => by_size!(size, reg_mem),
        (OpKind::Register, _) => by_size!(size, reg_imm),
        (OpKind::Memory, OpKind::Register) => by_size!(size, mem_reg),
        _ => by_size!(size, mem_imm),
    };
    true
}

#[inline(always)]
fn extend<const SIGNED: bool, S: Int, T: Int>(value: S) -> T {
    T::from_u64(if SIGNED { value.to_i64() as u64 } else { value.to_u64() })
}

fn extend_reg<const SIGNED: bool, S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = cpu.regs.get::<S>(op.src);
    cpu.regs.set::<T>(op.dst, extend::<SIGNED, S, T>(value));
    Ok(Flow::Next)
}

fn extend_mem<const SIGNED: bool, S: Int, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let value = load::<S>(cpu, op)?;
    cpu.regs.set::<T>(op.dst, extend::<SIGNED, S, T>(value));
    Ok(Flow::Next)
}

/// MOVZX, MOVSX, MOVSXD.
pub(super) fn select_extend<const SIGNED: bool>(insn: &Instruction, op: &mut Op) -> bool {
    let (to, from) = (operand_size(insn, 0), operand_size(insn, 1));
    macro_rules! choose {
        ($f:ident) => {
            match (from, to) {
                (1, 2) => $f::<SIGNED, u8, u16>,
                (1, 4) => $f::<SIGNED, u8, u32>,
                (1, _) => $f::<SIGNED, u8, u64>,
                (2, 2) => $f::<SIGNED, u16, u16>,
                (2, 4) => $f::<SIGNED, u16, u32>,
                (2, _) => $f::<SIGNED, u16, u64>,
                // MOVSXD with a 16-bit destination moves 16 bits.
                (_, 2) => $f::<SIGNED, u16, u16>,
                (_, 4) => $f::<SIGNED, u32, u32>,
                _ => $f::<SIGNED, u32, u64>,
            }
        };
    }
    op.run = if is_memory(insn, 1) { choose!(extend_mem) } else { choose!(extend_reg) };
    true
}

fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let address = op.address(cpu);
    cpu.regs.set(op.dst, T::from_u64(address));
    Ok(Flow::Next)
}

pub(super) fn select_lea(insn: &Instruction, op: &mut Op) -> bool {
    op.run = by_size!(operand_size(insn, 0), lea);
    true
}

fn xchg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    cpu.regs.set(op.dst, b);
    cpu.regs.set(op.src, a);
    Ok(Flow::Next)
}

/// XCHG of registers; with memory it is locked and executes natively.
pub(super) fn select_xchg(insn: &Instruction, op: &mut Op) -> bool {
    if is_memory(insn, 0) || is_memory(insn, 1) {
        return false;
    }
    op.run = by_size!(operand_size(insn, 0), xchg);
    true
}

pub(super) fn select_bswap(insn: &Instruction, op: &mut Op) -> bool {
    match operand_size(insn, 0) {
        4 => set(op, |cpu, op| {
            let value = cpu.regs.get::<u32>(op.dst).swap_bytes();
            cpu.regs.set(op.dst, value);
            Ok(Flow::Next)
        }),
        8 => set(op, |cpu, op| {
            cpu.regs.r[op.dst as usize] = cpu.regs.r[op.dst as usize].swap_bytes();
            Ok(Flow::Next)
        }),
        // Undefined for 16 bits: whatever the host does.
        _ => false,
    }
}

/// CBW, CWDE, CDQE, CWD, CDQ, CQO.
pub(super) fn select_convert(insn: &Instruction, op: &mut Op) -> bool {
    fn sign<S: Int, T: Int>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
        let value = T::from_u64(cpu.regs.get::<S>(RAX as u8).to_i64() as u64);
        cpu.regs.set(RAX as u8, value);
        Ok(Flow::Next)
    }
    fn spread<T: Int>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
        let value = T::from_u64((cpu.regs.get::<T>(RAX as u8).to_i64() >> 63) as u64);
        cpu.regs.set(RDX as u8, value);
        Ok(Flow::Next)
    }
    op.run = match insn.mnemonic() {
        M::Cbw => sign::<u8, u16>,
        M::Cwde => sign::<u16, u32>,
        M::Cdqe => sign::<u32, u64>,
        M::Cwd => spread::<u16>,
        M::Cdq => spread::<u32>,
        _ => spread::<u64>,
    };
    true
}

/// XLATB: AL = [rBX + AL].
pub(super) fn select_xlat(insn: &Instruction, op: &mut Op, key: BlockKey) -> bool {
    op.address_cut = match insn.memory_base() {
        Register::RBX => 0,
        Register::EBX => 32,
        _ => 48,
    };
    let segment = crate::block::decode::segment_number(insn.memory_segment());
    let flat = key.is_64() && !matches!(segment as usize, seg::FS | seg::GS);
    op.segment = if flat { FLAT as u8 } else { segment };
    set(op, |cpu, op| {
        let sum = cpu.regs.r[RBX].wrapping_add(cpu.regs.r[RAX] & 0xff);
        let linear = cpu.linear(op.segment, sum << op.address_cut >> op.address_cut, 1, false)?;
        let value = cpu.read::<u8>(linear)?;
        cpu.regs.set(RAX as u8, value);
        Ok(Flow::Next)
    })
}
