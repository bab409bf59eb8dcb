//! Multiplication and division: the host's instructions, after the checks that keep it from faulting.

use super::*;
use crate::fault::{Fault, Result};
use crate::regs::{HIGH, RAX, RDX};
use std::arch::asm;

pub(super) const MUL: u8 = 0;
pub(super) const IMUL: u8 = 1;
pub(super) const DIV: u8 = 2;
pub(super) const IDIV: u8 = 3;

/// Operand sizes with an accumulator pair: 16, 32 and 64 bits.
trait Wide: Int {
    fn imul2(self, b: Self) -> (Self, u16);
    /// (low, high, flags).
    fn mul(self, b: Self) -> (Self, Self, u16);
    fn imul(self, b: Self) -> (Self, Self, u16);
    /// (quotient, remainder, flags) of `high:low / self`. The quotient must fit.
    fn div(self, low: Self, high: Self, flags: u64) -> (Self, Self, u16);
    fn idiv(self, low: Self, high: Self, flags: u64) -> (Self, Self, u16);
}

macro_rules! wide {
    ($int:ty, $m:literal) => {
        impl Wide for $int {
            #[inline(always)]
            fn imul2(self, b: Self) -> (Self, u16) {
                let (mut a, mut ax) = (self, 0u16);
                // SAFETY: register arithmetic only.
                unsafe {
                    asm!(concat!("imul {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                        a = inout(reg) a, b = in(reg) b, inout("ax") ax, options(nomem, nostack, pure));
                }
                (a, ax)
            }
            wide!(@multiply mul, $int, $m);
            wide!(@multiply imul, $int, $m);
            wide!(@divide div, $int, $m);
            wide!(@divide idiv, $int, $m);
        }
    };
    (@multiply $name:ident, $int:ty, $m:literal) => {
        #[inline(always)]
        fn $name(self, b: Self) -> (Self, Self, u16) {
            let (low, high, flags): ($int, $int, u64);
            // SAFETY: register arithmetic and a balanced push and pop.
            unsafe {
                asm!(concat!(stringify!($name), " {b", $m, "}"), "pushfq", "pop {f}",
                    b = in(reg) b, f = out(reg) flags, inout("rax") self => low, out("rdx") high);
            }
            (low, high, to_ax(flags))
        }
    };
    (@divide $name:ident, $int:ty, $m:literal) => {
        #[inline(always)]
        fn $name(self, low: Self, high: Self, flags: u64) -> (Self, Self, u16) {
            let (mut quotient, mut remainder, mut flags) = (low, high, flags & rflags::STATUS | 2);
            // SAFETY: the caller has checked that the quotient fits, so this does not fault.
            unsafe {
                asm!("push {f}", "popfq", concat!(stringify!($name), " {b", $m, "}"), "pushfq", "pop {f}",
                    b = in(reg) self, f = inout(reg) flags, inout("rax") quotient, inout("rdx") remainder);
            }
            (quotient, remainder, to_ax(flags))
        }
    };
}
wide!(u16, ":x");
wide!(u32, ":e");
wide!(u64, ":r");

/// Flags as `LAHF; SETO AL` would leave them.
fn to_ax(flags: u64) -> u16 {
    (flags as u16 & 0xff) << 8 | (flags >> 11 & 1) as u16
}

fn imul_reg<T: Wide>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    finish_imul(cpu, op, a, b)
}

fn imul_mem<T: Wide>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = load::<T>(cpu, op)?;
    let a = cpu.regs.get::<T>(op.dst);
    finish_imul(cpu, op, a, b)
}

fn imul_reg_imm<T: Wide>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = cpu.regs.get::<T>(op.src);
    finish_imul(cpu, op, a, T::from_u64(op.imm))
}

fn imul_mem_imm<T: Wide>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let a = load::<T>(cpu, op)?;
    finish_imul(cpu, op, a, T::from_u64(op.imm))
}

#[inline(always)]
fn finish_imul<T: Wide>(cpu: &mut Cpu, op: &Op, a: T, b: T) -> Result<Flow> {
    let (result, ax) = a.imul2(b);
    cpu.regs.set_status(ax, rflags::STATUS);
    cpu.regs.set(op.dst, result);
    Ok(Flow::Next)
}

macro_rules! by_wide_size {
    ($size:expr, $f:ident $(, $generic:expr)*) => {
        match $size {
            2 => $f::<$($generic,)* u16>,
            4 => $f::<$($generic,)* u32>,
            _ => $f::<$($generic,)* u64>,
        }
    };
}

/// IMUL with two or three operands.
pub(super) fn select_imul(insn: &Instruction, op: &mut Op) -> bool {
    let size = operand_size(insn, 0);
    op.run = match (is_memory(insn, 1), insn.op_count()) {
        (false, 2) => by_wide_size!(size, imul_reg),
        (true, 2) => by_wide_size!(size, imul_mem),
        (false, _) => by_wide_size!(size, imul_reg_imm),
        (true, _) => by_wide_size!(size, imul_mem_imm),
    };
    true
}

#[inline(always)]
fn wide<const K: u8, T: Wide>(cpu: &mut Cpu, b: T) -> Result<Flow> {
    let (low, high) = (cpu.regs.get::<T>(RAX as u8), cpu.regs.get::<T>(RDX as u8));
    let (low, high, ax) = match K {
        MUL => low.mul(b),
        IMUL => low.imul(b),
        DIV => {
            // The quotient fits exactly when the upper half is less than the divisor.
            if high.to_u64() >= b.to_u64() {
                return Err(Fault::DIVIDE);
            }
            b.div(low, high, cpu.regs.rflags)
        }
        _ => {
            if !idiv_fits(low, high, b) {
                return Err(Fault::DIVIDE);
            }
            b.idiv(low, high, cpu.regs.rflags)
        }
    };
    cpu.regs.set_status(ax, rflags::STATUS);
    cpu.regs.set(RAX as u8, low);
    cpu.regs.set(RDX as u8, high);
    Ok(Flow::Next)
}

fn idiv_fits<T: Int>(low: T, high: T, divisor: T) -> bool {
    let dividend = (high.to_i64() as i128) << T::BITS | low.to_u64() as i128;
    let limit = 1i128 << (T::BITS - 1);
    match dividend.checked_div(divisor.to_i64() as i128) {
        Some(quotient) => (-limit..limit).contains(&quotient),
        None => false,
    }
}

/// The 8-bit forms work on AX.
fn narrow<const K: u8>(cpu: &mut Cpu, b: u8) -> Result<Flow> {
    let accumulator = cpu.regs.get::<u16>(RAX as u8);
    let al = accumulator as u8;
    match K {
        MUL | IMUL => {
            let signed = K == IMUL;
            let (flags, result): (u64, u16);
            // SAFETY: register arithmetic and a balanced push and pop.
            unsafe {
                if signed {
                    asm!("imul {b}", "pushfq", "pop {f}", b = in(reg_byte) b, f = out(reg) flags,
                        inout("ax") al as u16 => result);
                } else {
                    asm!("mul {b}", "pushfq", "pop {f}", b = in(reg_byte) b, f = out(reg) flags,
                        inout("ax") al as u16 => result);
                }
            }
            cpu.regs.set_status(to_ax(flags), rflags::STATUS);
            cpu.regs.set(RAX as u8, result);
        }
        DIV => {
            if b == 0 || accumulator / b as u16 > 0xff {
                return Err(Fault::DIVIDE);
            }
            cpu.regs.set(RAX as u8, (accumulator / b as u16) as u8);
            cpu.regs.set(HIGH, (accumulator % b as u16) as u8);
        }
        _ => {
            let (dividend, divisor) = (accumulator as i16 as i32, b as i8 as i32);
            if divisor == 0 || !(-128..128).contains(&(dividend / divisor)) {
                return Err(Fault::DIVIDE);
            }
            cpu.regs.set(RAX as u8, (dividend / divisor) as u8);
            cpu.regs.set(HIGH, (dividend % divisor) as u8);
        }
    }
    Ok(Flow::Next)
}

fn wide_reg<const K: u8, T: Wide>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = cpu.regs.get::<T>(op.dst);
    wide::<K, T>(cpu, b)
}

fn wide_mem<const K: u8, T: Wide>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = load::<T>(cpu, op)?;
    wide::<K, T>(cpu, b)
}

fn narrow_reg<const K: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = cpu.regs.get::<u8>(op.dst);
    narrow::<K>(cpu, b)
}

fn narrow_mem<const K: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let b = load::<u8>(cpu, op)?;
    narrow::<K>(cpu, b)
}

/// MUL, IMUL, DIV, IDIV with the accumulator.
pub(super) fn select_wide<const K: u8>(insn: &Instruction, op: &mut Op) -> bool {
    op.run = match (is_memory(insn, 0), operand_size(insn, 0)) {
        (false, 1) => narrow_reg::<K>,
        (true, 1) => narrow_mem::<K>,
        (false, size) => by_wide_size!(size, wide_reg, K),
        (true, size) => by_wide_size!(size, wide_mem, K),
    };
    true
}
