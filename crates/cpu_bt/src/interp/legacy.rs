//! Decimal arithmetic, which 64-bit mode has no more (SDM vol. 2A, "AAA" to "DAS").

use super::*;
use crate::fault::{Fault, Result};
use crate::regs::{HIGH, RAX};

fn set_sign_zero_parity(cpu: &mut Cpu, value: u8) {
    let (_, ax) = value.or(0);
    cpu.regs.set_status(ax, rflags::SF | rflags::ZF | rflags::PF);
}

fn put(cpu: &mut Cpu, bit: u64, on: bool) {
    cpu.regs.rflags = cpu.regs.rflags & !bit | if on { bit } else { 0 };
}

fn aaa_aas<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let ax = cpu.regs.get::<u16>(RAX as u8);
    let adjust = ax & 0xf > 9 || cpu.regs.flag(rflags::AF);
    let ax = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    put(cpu, rflags::AF, adjust);
    put(cpu, rflags::CF, adjust);
    cpu.regs.set(RAX as u8, ax & 0xff0f);
    Ok(Flow::Next)
}

fn aam(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let base = op.imm as u8;
    if base == 0 {
        return Err(Fault::DIVIDE);
    }
    let al = cpu.regs.get::<u8>(RAX as u8);
    cpu.regs.set(HIGH, al / base);
    cpu.regs.set(RAX as u8, al % base);
    set_sign_zero_parity(cpu, al % base);
    Ok(Flow::Next)
}

fn aad(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (al, ah) = (cpu.regs.get::<u8>(RAX as u8), cpu.regs.get::<u8>(HIGH));
    let value = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    cpu.regs.set(RAX as u8, value as u16);
    set_sign_zero_parity(cpu, value);
    Ok(Flow::Next)
}

fn daa_das<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let (old, carry) = (cpu.regs.get::<u8>(RAX as u8), cpu.regs.flag(rflags::CF));
    let step =
        |value: u8, by: u8| if SUBTRACT { value.overflowing_sub(by) } else { value.overflowing_add(by) };
    let (mut al, mut new_carry) = (old, false);
    let low = old & 0xf > 9 || cpu.regs.flag(rflags::AF);
    if low {
        let (value, overflow) = step(al, 6);
        al = value;
        new_carry = carry || overflow;
    }
    put(cpu, rflags::AF, low);
    if old > 0x99 || carry {
        al = step(al, 0x60).0;
        new_carry = true;
    } else if !SUBTRACT {
        new_carry = false;
    }
    put(cpu, rflags::CF, new_carry);
    cpu.regs.set(RAX as u8, al);
    set_sign_zero_parity(cpu, al);
    Ok(Flow::Next)
}

pub(super) fn select(insn: &Instruction, op: &mut Op) -> bool {
    op.run = match insn.mnemonic() {
        M::Aaa => aaa_aas::<false>,
        M::Aas => aaa_aas::<true>,
        M::Aam => aam,
        M::Aad => aad,
        M::Daa => daa_das::<false>,
        M::Das => daa_das::<true>,
        // SALC: AL becomes all ones or zeroes with the carry.
        _ => |cpu, _| {
            let value = if cpu.regs.flag(rflags::CF) { 0xff } else { 0 };
            cpu.regs.set::<u8>(RAX as u8, value);
            Ok(Flow::Next)
        },
    };
    true
}
