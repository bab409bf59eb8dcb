//! Handlers of the common integer instructions, one file per family.
//!
//! `select` picks a handler by mnemonic, operand kinds and operand size; each combination is its own
//! function, so that nothing is decided while the guest runs. Instructions with a LOCK prefix, and
//! whatever is rare and unprivileged, are left to [`native`](crate::native).

mod alu;
mod branch;
pub(crate) mod condition;
mod legacy;
mod moves;
mod muldiv;
mod shift;
pub(crate) mod stack;
mod string;

use crate::block::{Detail, Flow, Op};
use crate::cpu::{BlockKey, Cpu};
use crate::int::Int;
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use std::rc::Rc;
use x86::reg::rflags;

/// Chooses one of four functions by operand size in bytes.
macro_rules! by_size {
    ($size:expr, $f:ident $(, $generic:expr)*) => {
        match $size {
            1 => $f::<$($generic,)* u8>,
            2 => $f::<$($generic,)* u16>,
            4 => $f::<$($generic,)* u32>,
            _ => $f::<$($generic,)* u64>,
        }
    };
}
pub(crate) use by_size;

/// Chooses the handler of an instruction and completes `op`; false when there is none here.
pub(crate) fn select(insn: &Instruction, op: &mut Op, key: BlockKey) -> bool {
    if insn.has_lock_prefix() {
        return false;
    }
    match insn.mnemonic() {
        M::Add => alu::two_operands::<{ alu::ADD }>(insn, op),
        M::Or => alu::two_operands::<{ alu::OR }>(insn, op),
        M::Adc => alu::two_operands::<{ alu::ADC }>(insn, op),
        M::Sbb => alu::two_operands::<{ alu::SBB }>(insn, op),
        M::And => alu::two_operands::<{ alu::AND }>(insn, op),
        M::Sub => alu::two_operands::<{ alu::SUB }>(insn, op),
        M::Xor => alu::two_operands::<{ alu::XOR }>(insn, op),
        M::Cmp => alu::compare::<{ alu::SUB }>(insn, op),
        M::Test => alu::compare::<{ alu::AND }>(insn, op),
        M::Inc => alu::one_operand::<{ alu::INC }>(insn, op),
        M::Dec => alu::one_operand::<{ alu::DEC }>(insn, op),
        M::Neg => alu::one_operand::<{ alu::NEG }>(insn, op),
        M::Not => alu::one_operand::<{ alu::NOT }>(insn, op),
        M::Shl | M::Sal => shift::select::<{ shift::SHL }>(insn, op),
        M::Shr => shift::select::<{ shift::SHR }>(insn, op),
        M::Sar => shift::select::<{ shift::SAR }>(insn, op),
        M::Rol => shift::select::<{ shift::ROL }>(insn, op),
        M::Ror => shift::select::<{ shift::ROR }>(insn, op),
        M::Rcl => shift::select::<{ shift::RCL }>(insn, op),
        M::Rcr => shift::select::<{ shift::RCR }>(insn, op),
        M::Imul if insn.op_count() > 1 => muldiv::select_imul(insn, op),
        M::Mul => muldiv::select_wide::<{ muldiv::MUL }>(insn, op),
        M::Imul => muldiv::select_wide::<{ muldiv::IMUL }>(insn, op),
        M::Div => muldiv::select_wide::<{ muldiv::DIV }>(insn, op),
        M::Idiv => muldiv::select_wide::<{ muldiv::IDIV }>(insn, op),
        M::Mov => moves::select_mov(insn, op),
        M::Movzx => moves::select_extend::<false>(insn, op),
        M::Movsx => moves::select_extend::<true>(insn, op),
        // To 16 bits, how much is read depends on the processor: it executes natively.
        M::Movsxd if insn.op0_register().size() > 2 => moves::select_extend::<true>(insn, op),
        M::Lea => moves::select_lea(insn, op),
        M::Xchg => moves::select_xchg(insn, op),
        M::Bswap => moves::select_bswap(insn, op),
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => moves::select_convert(insn, op),
        M::Xlatb => moves::select_xlat(insn, op, key),
        M::Lahf => set(op, |cpu, _| {
            cpu.regs.set::<u8>(crate::regs::HIGH, cpu.regs.rflags as u8 & 0xd5 | 2);
            Ok(Flow::Next)
        }),
        M::Sahf => set(op, |cpu, _| {
            let ah = cpu.regs.get::<u8>(crate::regs::HIGH) as u64;
            cpu.regs.rflags = cpu.regs.rflags & !0xd5 | ah & 0xd5;
            Ok(Flow::Next)
        }),
        M::Jmp => branch::select_jmp(insn, op),
        M::Call => branch::select_call(insn, op),
        M::Ret => branch::select_ret(insn, op),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => branch::select_loop(insn, op),
        M::Push => stack::select_push(insn, op),
        M::Pop => stack::select_pop(insn, op),
        M::Leave => stack::select_leave(insn, op),
        M::Enter => stack::select_enter(insn, op),
        M::Pusha | M::Pushad => stack::select_pusha(insn, op),
        M::Popa | M::Popad => stack::select_popa(insn, op),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => string::select(insn, op, key),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => string::select(insn, op, key),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => string::select(insn, op, key),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => string::select(insn, op, key),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => string::select(insn, op, key),
        M::Aaa | M::Aas | M::Aam | M::Aad | M::Daa | M::Das | M::Salc => legacy::select(insn, op),
        M::Clc => set(op, |cpu, _| flags(cpu, |f| f & !rflags::CF)),
        M::Stc => set(op, |cpu, _| flags(cpu, |f| f | rflags::CF)),
        M::Cmc => set(op, |cpu, _| flags(cpu, |f| f ^ rflags::CF)),
        M::Cld => set(op, |cpu, _| flags(cpu, |f| f & !rflags::DF)),
        M::Std => set(op, |cpu, _| flags(cpu, |f| f | rflags::DF)),
        M::Nop | M::Endbr32 | M::Endbr64 => set(op, |_, _| Ok(Flow::Next)),
        _ if insn.is_jcc_short_or_near() => branch::select_jcc(insn, op),
        _ if is_setcc(insn) => condition::select_setcc(insn, op),
        _ if is_cmovcc(insn) => condition::select_cmovcc(insn, op),
        _ => false,
    }
}

/// The handler that executes an op, for the caller to check.
fn set(op: &mut Op, handler: crate::block::Handler) -> bool {
    op.run = handler;
    true
}

fn flags(cpu: &mut Cpu, f: impl FnOnce(u64) -> u64) -> crate::fault::Result<Flow> {
    cpu.regs.rflags = f(cpu.regs.rflags);
    Ok(Flow::Next)
}

fn is_setcc(insn: &Instruction) -> bool {
    use iced_x86::ConditionCode;
    insn.condition_code() != ConditionCode::None
        && insn.op_count() == 1
        && insn.op0_kind() != OpKind::NearBranch64
        && operand_size(insn, 0) == 1
        && insn.code().mnemonic() != M::Ret
}

fn is_cmovcc(insn: &Instruction) -> bool {
    use iced_x86::ConditionCode;
    insn.condition_code() != ConditionCode::None
        && insn.op_count() == 2
        && insn.op0_register().is_gpr()
        && insn.cpuid_features().contains(&iced_x86::CpuidFeature::CMOV)
}

/// Size in bytes of a register or memory operand.
fn operand_size(insn: &Instruction, operand: u32) -> usize {
    match insn.op_kind(operand) {
        OpKind::Register => insn.op_register(operand).size(),
        OpKind::Memory => insn.memory_size().size(),
        _ => 0,
    }
}

fn is_memory(insn: &Instruction, operand: u32) -> bool {
    insn.op_kind(operand) == OpKind::Memory
}

fn is_segment_or_special(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| {
        let register = insn.op_register(n);
        insn.op_kind(n) == OpKind::Register && !register.is_gpr() && register != Register::None
    })
}

/// Reads the memory operand.
#[inline(always)]
fn load<T: Int>(cpu: &mut Cpu, op: &Op) -> crate::fault::Result<T> {
    let linear = op.linear(cpu, T::BYTES, false)?;
    cpu.read(linear)
}

/// Writes the memory operand.
#[inline(always)]
fn store<T: Int>(cpu: &mut Cpu, op: &Op, value: T) -> crate::fault::Result<()> {
    let linear = op.linear(cpu, T::BYTES, true)?;
    cpu.write(linear, value)
}

/// Reads, computes and writes back the memory operand.
#[inline(always)]
fn modify<T: Int>(cpu: &mut Cpu, op: &Op, f: impl FnOnce(&mut Cpu, T) -> T) -> crate::fault::Result<()> {
    let linear = op.linear(cpu, T::BYTES, true)?;
    cpu.modify(linear, f)
}

fn with_detail(insn: &Instruction, op: &mut Op) {
    op.detail = Some(Rc::new(Detail { insn: *insn, stub: None }));
}
