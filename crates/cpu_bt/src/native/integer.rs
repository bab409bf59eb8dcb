//! Integer instructions that need more than a host function: bit strings, and divisions.

use super::run::with_split_lock;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use crate::regs::{RAX, RDX};
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::arch::asm;
use x86::reg::rflags;

/// What a bit instruction does to its bit.
const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

/// The handler of a bit instruction with a memory operand and a bit number in a register: the number
/// reaches beyond the operand (SDM vol. 2A, BT).
pub(super) fn bit_string_handler(insn: &Instruction) -> Option<Handler> {
    if insn.op0_kind() != OpKind::Memory || insn.op1_kind() != OpKind::Register {
        return None;
    }
    macro_rules! of_size {
        ($action:ident) => {
            match insn.op1_register().size() {
                2 => bit_string::<u16, $action>,
                4 => bit_string::<u32, $action>,
                _ => bit_string::<u64, $action>,
            }
        };
    }
    Some(match insn.mnemonic() {
        Mnemonic::Bt => of_size!(TEST),
        Mnemonic::Bts => of_size!(SET),
        Mnemonic::Btr => of_size!(RESET),
        Mnemonic::Btc => of_size!(COMPLEMENT),
        _ => return None,
    })
}

fn bit_string<T: LockedBits, const ACTION: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let number = cpu.regs.get::<T>(op.dst).to_i64();
    let bit = number as u32 % T::BITS;
    let distance = (number >> T::BITS.trailing_zeros()) * T::BYTES as i64;
    let offset = op.address(cpu).wrapping_add(distance as u64) << op.address_cut >> op.address_cut;
    let linear = cpu.linear(op.segment, offset, T::BYTES, ACTION != TEST)?;
    let mut was_set = false;
    if ACTION == TEST {
        was_set = cpu.read::<T>(linear)?.to_u64() >> bit & 1 != 0;
    } else if op.insn().has_lock_prefix() {
        was_set = locked::<T, ACTION>(cpu, linear, bit)?;
    } else {
        cpu.modify::<T>(linear, |_, value| {
            was_set = value.to_u64() >> bit & 1 != 0;
            changed::<T, ACTION>(value, bit)
        })?;
    }
    cpu.regs.rflags = cpu.regs.rflags & !rflags::CF | was_set as u64;
    Ok(Flow::Next)
}

fn changed<T: Int, const ACTION: u8>(value: T, bit: u32) -> T {
    let mask = 1u64 << bit;
    T::from_u64(match ACTION {
        SET => value.to_u64() | mask,
        RESET => value.to_u64() & !mask,
        _ => value.to_u64() ^ mask,
    })
}

#[cold]
fn locked<T: LockedBits, const ACTION: u8>(cpu: &mut Cpu, linear: u64, bit: u32) -> Result<bool> {
    if let Some((ptr, gpa)) = cpu.locked(linear, T::BYTES)? {
        // SAFETY: `ptr` leads to `BYTES` bytes in a page of RAM.
        let was_set = unsafe { T::change_bit::<ACTION>(ptr, bit) };
        cpu.wrote(gpa, T::BYTES);
        return Ok(was_set);
    }
    with_split_lock(|| {
        let value = cpu.read::<T>(linear)?;
        cpu.write(linear, changed::<T, ACTION>(value, bit))?;
        Ok(value.to_u64() >> bit & 1 != 0)
    })
}

/// Atomic changes of one bit.
trait LockedBits: Int {
    /// Changes bit `bit`, which is inside, and returns what it was.
    ///
    /// # Safety
    /// `ptr` is valid for reading and writing `BYTES` bytes.
    unsafe fn change_bit<const ACTION: u8>(ptr: *mut u8, bit: u32) -> bool;
}

macro_rules! locked_bits {
    ($int:ty, $m:literal) => {
        impl LockedBits for $int {
            unsafe fn change_bit<const ACTION: u8>(ptr: *mut u8, bit: u32) -> bool {
                let was_set: u8;
                macro_rules! change {
                            ($name:literal) => {
                                // SAFETY: by the caller; the bit number is below the operand's size.
                                unsafe {
                                    asm!(concat!("lock ", $name, " [{p}], {b", $m, "}"), "setc {c}",
                                        p = in(reg) ptr, b = in(reg) bit as $int, c = out(reg_byte) was_set,
                                        options(nostack));
                                }
                            };
                        }
                match ACTION {
                    SET => change!("bts"),
                    RESET => change!("btr"),
                    _ => change!("btc"),
                }
                was_set != 0
            }
        }
    };
}
locked_bits!(u16, ":x");
locked_bits!(u32, ":e");
locked_bits!(u64, ":r");

/// The handler of DIV and IDIV.
pub(super) fn divide_handler(insn: &Instruction) -> Option<Handler> {
    match insn.mnemonic() {
        Mnemonic::Div => Some(divide::<false>),
        Mnemonic::Idiv => Some(divide::<true>),
        _ => None,
    }
}

/// Executes a division after making sure that it does not fault.
fn divide<const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let stub = op.stub();
    let insn = op.insn();
    let mut divisor = [0u8; 8];
    let size = if insn.op0_kind() == OpKind::Memory {
        let size = stub.size as usize;
        let linear = op.linear(cpu, size, false)?;
        cpu.read_bytes(linear, &mut divisor[..size])?;
        size
    } else {
        let size = insn.op0_register().size();
        let value = match size {
            1 => cpu.regs.get::<u8>(op.dst) as u64,
            _ => cpu.regs.get::<u64>(op.dst),
        };
        divisor[..size].copy_from_slice(&value.to_le_bytes()[..size]);
        size
    };
    if !quotient_fits::<SIGNED>(cpu, u64::from_le_bytes(divisor), size) {
        return Err(Fault::DIVIDE);
    }
    stub.call(&mut cpu.regs, divisor.as_mut_ptr());
    Ok(Flow::Next)
}

/// Whether the dividend in AX or rDX:rAX divided by `divisor` of `size` bytes gives a quotient of that
/// size.
fn quotient_fits<const SIGNED: bool>(cpu: &Cpu, divisor: u64, size: usize) -> bool {
    let bits = 8 * size as u32;
    let r = &cpu.regs.r;
    let low = |register: usize| (r[register] & u64::MAX >> (64 - bits)) as u128;
    let dividend = match size {
        1 => (r[RAX] & 0xffff) as u128,
        _ => low(RDX) << bits | low(RAX),
    };
    if divisor == 0 {
        return false;
    }
    if !SIGNED {
        return (dividend / divisor as u128) >> bits == 0;
    }
    let extend = |value: u128, bits: u32| (value << (128 - bits)) as i128 >> (128 - bits);
    let (dividend, divisor) = (extend(dividend, 2 * bits), extend(divisor as u128, bits));
    // i128::MIN / -1 is the one quotient that even 128 bits do not hold.
    dividend.checked_div(divisor).is_some_and(|quotient| extend(quotient as u128, bits) == quotient)
}
