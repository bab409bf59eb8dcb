//! How each instruction is done: re-encoded, hand-written, by its handler, or not in a trace at all.

use super::Key;
use super::strings;
use crate::block::decode::Class;
use crate::cpu::Cpu;
use crate::mmu::tlb::MmuIndex;
use crate::native;
use crate::native::classify::{Class as PlanClass, Memory, Plan};
use crate::options::Jit;
use crate::system;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpKind, Register};

/// How an instruction of a trace is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Re-encoded.
    Native,
    /// By its handler, then on.
    Callout,
    /// By its handler, which says where the guest goes on: the trace ends with it.
    Hand,
    /// The trace ends before it; it is interpreted.
    Depart,
    /// A branch, push or pop: hand-written.
    Special,
    /// Nothing to do.
    Nothing,
}

impl Cpu {
    /// How an instruction is done.
    pub(super) fn way(&mut self, insn: &Instruction, key: Key) -> (Way, Option<Plan>) {
        let simple = |way| (way, None);
        if native::does_nothing(self, insn) && insn.mnemonic() != M::Pause {
            return simple(Way::Nothing);
        }
        let class = self.classify(insn);
        if class == Class::System {
            return simple(self.system_way(insn, key));
        }
        if class == Class::Interpreted && strings::Kind::of(insn).is_some() {
            return simple(Way::Special);
        }
        if has_string_operand(insn) {
            return simple(if class == Class::Interpreted { Way::Callout } else { Way::Depart });
        }
        match insn.mnemonic() {
            M::Jmp | M::Call | M::Ret => return simple(branch_way(insn)),
            _ if insn.is_jcc_short_or_near() => return simple(branch_way(insn)),
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz | M::Jcxz => return simple(Way::Hand),
            M::Push if insn.stack_pointer_increment() == -8 && insn.op0_kind() != OpKind::Memory => {
                return simple(Way::Special);
            }
            M::Pop if insn.stack_pointer_increment() == 8 && insn.op0_kind() == OpKind::Register => {
                return simple(Way::Special);
            }
            M::Leave if insn.code() == Code::Leaveq => return simple(Way::Special),
            // It has no operands, so no plan; most vector functions of C libraries end with it.
            M::Vzeroupper if key.avx() => return simple(Way::Special),
            M::Lea if reaches(insn) => return simple(Way::Native),
            M::Lea => return simple(Way::Callout),
            _ => {}
        }
        let plan = native::plan(self, insn);
        match plan {
            Some(plan) if can_reencode(insn, &plan, key) => (Way::Native, Some(plan)),
            _ if insn.flow_control() == FlowControl::Next => simple(Way::Callout),
            _ => simple(Way::Depart),
        }
    }
}

impl Cpu {
    /// How a system instruction is done.
    fn system_way(&self, insn: &Instruction, key: Key) -> Way {
        let supervisor = key.mmu() != MmuIndex::User;
        let harmless = supervisor && matches!(insn.mnemonic(), M::Cli | M::Sti | M::Pushfq);
        if self.vm.options.jit == Jit::Lockstep && !harmless {
            // What they do beyond registers and memory must be done once only.
            return Way::Depart;
        }
        match insn.mnemonic() {
            M::Cli | M::Sti | M::Pushfq | M::Swapgs if supervisor => Way::Special,
            M::Syscall if !supervisor => Way::Special,
            M::Sysretq if supervisor => Way::Special,
            M::Rdtsc | M::Rdtscp
                if key.tsc() && system::exists(self, insn) && std::arch::is_x86_feature_detected!("bmi2") =>
            {
                Way::Special
            }
            M::Stac | M::Clac if supervisor && system::exists(self, insn) => Way::Special,
            // There is nothing to go on to.
            M::Hlt => Way::Depart,
            _ if insn.flow_control() != FlowControl::Next => Way::Hand,
            _ => Way::Callout,
        }
    }
}

/// How a near branch is done.
pub(super) fn branch_way(insn: &Instruction) -> Way {
    let target = insn.near_branch_target();
    let ordinary = match insn.op0_kind() {
        _ if insn.mnemonic() == M::Ret => matches!(insn.code(), Code::Retnq | Code::Retnq_imm16),
        OpKind::NearBranch64 => target as i32 as i64 == target as i64,
        // The stack pointer as a target would have to be read in the middle of a push.
        OpKind::Register => insn.op0_register().is_gpr64() && insn.op0_register() != Register::RSP,
        OpKind::Memory => insn.memory_size().size() == 8 && reaches(insn),
        _ => false,
    };
    if ordinary { Way::Special } else { Way::Depart }
}

/// Whether the address of the memory operand can be computed as it is encoded.
pub(super) fn reaches(insn: &Instruction) -> bool {
    let displacement = insn.memory_displacement64() as i64;
    insn.memory_base() != Register::EIP
        && !insn.memory_index().is_vector_register()
        && displacement as i32 as i64 == displacement
}

pub(super) fn has_string_operand(insn: &Instruction) -> bool {
    use OpKind::*;
    (0..insn.op_count()).any(|n| {
        matches!(
            insn.op_kind(n),
            MemorySegSI
                | MemorySegESI
                | MemorySegRSI
                | MemorySegDI
                | MemorySegEDI
                | MemorySegRDI
                | MemoryESDI
                | MemoryESEDI
                | MemoryESRDI
        )
    })
}

/// Whether an instruction can execute as itself with registers renamed and its memory operand replaced.
pub(super) fn can_reencode(insn: &Instruction, plan: &Plan, key: Key) -> bool {
    let available = match plan.class {
        PlanClass::Plain | PlanClass::PlainVex => true,
        PlanClass::Sse => key.simd(),
        PlanClass::Avx => key.avx(),
        PlanClass::Mmx | PlanClass::MmxSse | PlanClass::X87 => false,
    };
    let high = (0..insn.op_count()).any(|n| {
        insn.op_kind(n) == OpKind::Register
            && matches!(insn.op_register(n), Register::AH | Register::CH | Register::DH | Register::BH)
    });
    if plan.memory == Memory::None {
        return available;
    }
    // AH to BH cannot be encoded beside S0.
    available
        && !high
        && reaches(insn)
        && plan.size <= 32
        && plan.size.is_power_of_two()
        && !has_fixed_address(insn)
}

/// The forms of MOV with nothing but a 64-bit address.
pub(super) fn has_fixed_address(insn: &Instruction) -> bool {
    use Code::*;
    matches!(
        insn.code(),
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    )
}
