//! Instructions that execute as themselves on the host.
//!
//! For each instruction form a small host function is generated once ([`build`]), kept in the vCPU's
//! [`Stubs`] and called by a handler ([`run`]) which first makes the checks that a processor makes
//! ([`classify`] says which) and finds the memory operand, so that the function itself never faults.
//! Floating-point exceptions are found in the flags afterwards ([`float`], [`x87`]).
//!
//! Written by hand are instructions whose memory operand is not one run of bytes ([`scattered`], bit
//! strings in [`integer`]) and those that move state which the host keeps otherwise ([`state`],
//! [`xsave`]).

mod arena;
mod build;
pub(crate) mod classify;
mod features;
pub(crate) mod fixed;
mod float;
mod integer;
mod run;
mod scattered;
mod state;
mod x87;
mod xsave;

pub(crate) use arena::Stubs;
#[cfg(test)]
pub(crate) use build::without_address;

use crate::block::{Detail, Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::regs::Regs;
use crate::vm::VmShared;
use classify::{Class, Memory, Plan};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind};
use std::rc::Rc;

/// A generated function: executes one instruction on `regs`, with its memory operand at `memory`.
type Entry = unsafe extern "sysv64" fn(regs: *mut Regs, memory: *mut u8) -> u64;

/// Host code of one instruction.
pub(crate) struct Stub {
    entry: Entry,
    /// Size of the memory operand in bytes; 0 without.
    size: u16,
    /// Bits of the linear address that must be clear.
    align_mask: u16,
    /// An operand that is not aligned is copied instead of refused.
    lenient: bool,
    /// Uses MXCSR.
    mxcsr: bool,
    /// For an x87 instruction that the unit remembers: its opcode, the lower three bits of its first byte
    /// and the second.
    opcode: Option<u16>,
}

impl Stub {
    #[inline(always)]
    fn call(&self, regs: &mut Regs, memory: *mut u8) {
        // SAFETY: the function accesses `regs`, and at `memory` the operand that the handler prepared;
        // it keeps to the ABI. The arena is cleared only while no handler runs.
        unsafe { (self.entry)(regs, memory) };
    }
}

impl Op {
    #[inline(always)]
    fn stub(&self) -> &Stub {
        self.detail.as_ref().and_then(|detail| detail.stub.as_ref()).expect("native ops carry host code")
    }
}

/// Chooses the handler of an instruction and completes `op`; false when it does not execute natively.
pub(crate) fn select(cpu: &mut Cpu, insn: &Instruction, op: &mut Op) -> bool {
    if is_hint(insn) {
        if !does_nothing(&cpu.vm, insn) {
            return false;
        }
        op.run = |_, _| Ok(Flow::Next);
        return true;
    }
    let insn = &older_meaning(&cpu.vm, insn);
    if !features::has_instruction(&cpu.vm, insn) {
        return false;
    }
    if let Some(run) = handler(insn) {
        op.run = run;
        op.detail = Some(Rc::new(Detail { insn: *insn, stub: None }));
        return true;
    }
    if !select_stub(cpu, insn, op) {
        return false;
    }
    if let Some(run) = integer::divide_handler(insn)
        && !op.ends_block
    {
        op.run = run;
    }
    true
}

/// The handler of an instruction that is written by hand.
fn handler(insn: &Instruction) -> Option<Handler> {
    scattered::handler(insn)
        .or_else(|| state::handler(insn))
        .or_else(|| xsave::handler(insn))
        .or_else(|| integer::bit_string_handler(insn))
}

/// What executing an instruction takes, if it is one that executes natively and the guest's processor has.
pub(crate) fn plan(vm: &VmShared, insn: &Instruction) -> Option<Plan> {
    let meant = older_meaning(vm, insn);
    if insn.code() == Code::Movsxd_r16_rm16
        || meant.code() != insn.code()
        || handler(insn).is_some()
        || !features::has_instruction(vm, insn)
    {
        return None;
    }
    plan_on(vm, &build::without_address(insn))
}

/// The same instruction without opcode 82h, which is 80h outside 64-bit mode and does not exist in it.
fn with_usual_opcode(insn: &Instruction) -> Instruction {
    let code = match insn.code() {
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        _ => return *insn,
    };
    let mut usual = *insn;
    usual.set_code(code);
    usual
}

/// What executing an instruction from [`build::without_address`] takes on this guest's processor.
fn plan_on(vm: &VmShared, bare: &Instruction) -> Option<Plan> {
    let mut plan = Plan::of(bare)?;
    if plan.memory == Memory::Read && features::is_amd(vm) {
        match bare.code() {
            // All four bytes are read, though only two count.
            Code::Movsxd_r16_rm16 => plan.size = 4,
            // Does not switch to MMX state for an operand in memory.
            Code::Cvtpi2ps_xmm_mmm64 => plan.class = Class::Sse,
            _ => {}
        }
    }
    Some(plan)
}

/// Chooses a handler that executes a host function.
fn select_stub(cpu: &mut Cpu, insn: &Instruction, op: &mut Op) -> bool {
    let bare = build::without_address(insn);
    if let Some((run, detail)) = cpu.stubs.met_before(&bare) {
        (op.run, op.detail) = (*run, Some(detail.clone()));
        return true;
    }
    let Some(plan) = plan_on(&cpu.vm, &bare) else { return false };
    let Some(code) = build::build(&bare, &plan) else { return false };
    let opcode = x87::remembered_opcode(insn);
    let Ok(entry) = cpu.stubs.install(&code) else {
        op.run = |cpu, op| Err(cpu.cannot_continue(format!("{:?}: no memory for code", op.insn().code())));
        op.ends_block = true;
        op.detail = Some(Rc::new(Detail { insn: bare, stub: None }));
        return true;
    };
    let stub = Stub {
        entry,
        size: plan.size,
        align_mask: plan.align - 1,
        lenient: classify::is_lenient(insn) && features::is_amd(&cpu.vm),
        mxcsr: plan.mxcsr,
        opcode,
    };
    let detail = Rc::new(Detail { insn: bare, stub: Some(stub) });
    op.run = run::handler(plan.class, plan.memory);
    // The opcode that the x87 unit remembers has to do with the address.
    if opcode.is_none() {
        cpu.stubs.remember(bare, op.run, detail.clone());
    }
    op.detail = Some(detail);
    true
}

/// Instructions without effect, in encodings set aside for hints (SDM vol. 2B, NOP): no access is made.
/// Those of extensions that no guest has are among them.
pub(crate) fn is_hint(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Nop | Pause
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchw
            | Prefetchwt1
            | Prefetch
            | Prefetchit0
            | Prefetchit1
            | Endbr32
            | Endbr64
            | Rdsspd
            | Rdsspq
            | Cldemote
            | Bndcl
            | Bndcn
            | Bndcu
            | Bndldx
            | Bndmk
            | Bndmov
            | Bndstx
            | Reservednop
    )
}

/// Whether an instruction is a hint that the guest's processor takes.
pub(crate) fn does_nothing(vm: &VmShared, insn: &Instruction) -> bool {
    is_hint(insn) && !(is_prefetch_of_register(insn) && features::is_amd(vm))
}

/// PREFETCHW and its kin with a register operand: a hint to Intel's processors, undefined on AMD's.
fn is_prefetch_of_register(insn: &Instruction) -> bool {
    use Code::*;
    matches!(insn.code(), Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D)
        && insn.op0_kind() == OpKind::Register
}

/// What an instruction means to a processor that does not know the extension which gave its prefix a
/// meaning: LZCNT is BSR, TZCNT is BSF.
fn older_meaning(vm: &VmShared, insn: &Instruction) -> Instruction {
    let (code, feature) = match insn.code() {
        Code::Lzcnt_r16_rm16 => (Code::Bsr_r16_rm16, CpuidFeature::LZCNT),
        Code::Lzcnt_r32_rm32 => (Code::Bsr_r32_rm32, CpuidFeature::LZCNT),
        Code::Lzcnt_r64_rm64 => (Code::Bsr_r64_rm64, CpuidFeature::LZCNT),
        Code::Tzcnt_r16_rm16 => (Code::Bsf_r16_rm16, CpuidFeature::BMI1),
        Code::Tzcnt_r32_rm32 => (Code::Bsf_r32_rm32, CpuidFeature::BMI1),
        Code::Tzcnt_r64_rm64 => (Code::Bsf_r64_rm64, CpuidFeature::BMI1),
        _ => return with_usual_opcode(insn),
    };
    let mut older = *insn;
    if !features::has(vm, feature) {
        older.set_code(code);
    }
    older
}
