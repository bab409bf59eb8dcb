//! How each instruction is done: re-encoded, hand-written, by its handler, or not in a trace at all.

use super::groups::Form;
use super::trace::Step;

use super::trace::target_of;
use super::{Key, liveness, strings};
use crate::block::cache::AddressHasher;
use crate::block::decode::{Class, classify};
use crate::mmu::tlb::MmuIndex;
use crate::native;
use crate::native::classify::{Class as PlanClass, Memory, Plan};
use crate::native::fixed::fixed_operands;
use crate::options::Jit;
use crate::system;
use crate::vm::VmShared;
use iced_x86::{Code, CodeSize, FlowControl, Instruction, Mnemonic as M, OpKind, Register};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

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

/// What is to be known of an instruction.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) way: Way,
    /// For native ones.
    pub(super) plan: Option<Plan>,
    /// Status flags that it reads, and that it certainly sets.
    pub(super) flags_read: u8,
    pub(super) flags_set: u8,
    /// Guest registers that an operand is by the instruction's encoding.
    pub(super) fixed: u16,
    /// Flags may be in AX meanwhile, and RAX in memory: it needs neither.
    pub(super) leaves_flags_away: bool,
}

/// The kinds of instructions met before. Finding out takes long, and code consists of the same instructions over
/// and over.
#[derive(Default)]
pub(crate) struct Kinds {
    known: HashMap<u128, Kind, BuildHasherDefault<AddressHasher>>,
    /// Memory that each trace needs for a while.
    pub(super) steps: Vec<Step>,
    /// And for its bytes.
    pub(super) bytes: Box<[u8]>,
}

/// They are looked up for each instruction that is translated: two of them in three lines of the processor's caches.
const _: () = assert!(size_of::<(u128, Kind)>() <= 48);
/// Most kinds kept; beyond, all are found out anew.
const KINDS_MAX: usize = 8192;

impl Kinds {
    /// The kind of an instruction.
    pub(super) fn of(&mut self, vm: &VmShared, insn: &Instruction, key: Key) -> Kind {
        let shape = shape(insn, key);
        if let Some(known) = shape.and_then(|shape| self.known.get(&shape)) {
            return *known;
        }
        let (way, plan) = way(vm, insn, key);
        let fixed = if plan.is_some() { fixed_operands(insn) } else { 0 };
        let flags = |flags: u32| (flags & liveness::ALL) as u8;
        let (flags_read, flags_set) = (flags(insn.rflags_read()), flags(liveness::overwritten(insn)));
        let leaves_flags_away = leaves_flags_away(insn, way, plan.as_ref());
        let kind = Kind { way, plan, flags_read, flags_set, fixed, leaves_flags_away };
        if let Some(shape) = shape {
            if self.known.len() >= KINDS_MAX {
                self.known.clear();
            }
            self.known.insert(shape, kind);
        }
        kind
    }
}

/// Whether an instruction does nothing to flags and has nothing to do with RAX.
fn leaves_flags_away(insn: &Instruction, way: Way, plan: Option<&Plan>) -> bool {
    let simple = match way {
        Way::Nothing => return true,
        // A count that is said to change nothing may change what is undefined.
        Way::Native => !liveness::is_shift(insn.mnemonic()),
        Way::Special => match insn.mnemonic() {
            M::Push => insn.op0_kind() != OpKind::Memory,
            mnemonic => matches!(mnemonic, M::Pop | M::Leave | M::Vzeroupper | M::Ret),
        },
        _ => false,
    };
    let is_rax = |register: Register| register.full_register() == Register::RAX;
    let operands = (0..insn.op_count()).filter(|n| insn.op_kind(*n) == OpKind::Register);
    simple
        && insn.rflags_read() | insn.rflags_modified() == 0
        && plan.is_none_or(|plan| plan.gprs & 1 == 0)
        && !operands.map(|n| insn.op_register(n)).any(is_rax)
        && ![insn.memory_base(), insn.memory_index()].into_iter().any(is_rax)
}

/// All that the kind of an instruction depends on, as a number: everything but numbers in it, of which only a
/// shift's count matters. `None` for those that are not to be remembered.
fn shape(insn: &Instruction, key: Key) -> Option<u128> {
    let displacement = insn.memory_displacement64() as i64;
    if insn.flow_control() != FlowControl::Next || !fits(insn, displacement) {
        return None;
    }
    let mut shape = key.0 as u128;
    let mut add = |bits: u32, value: u32| shape = shape << bits | value as u128;
    add(13, insn.code() as u32);
    add(
        3,
        (insn.has_lock_prefix() as u32) << 2
            | (insn.has_rep_prefix() as u32) << 1
            | insn.has_repne_prefix() as u32,
    );
    for operand in 0..insn.op_count() {
        let kind = insn.op_kind(operand);
        add(5, kind as u32);
        match kind {
            OpKind::Register => add(8, insn.op_register(operand) as u32),
            OpKind::Memory => {
                for register in [insn.memory_base(), insn.memory_index(), insn.memory_segment()] {
                    add(8, register as u32);
                }
            }
            // Of a string.
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => {
                add(8, insn.memory_segment() as u32);
            }
            _ => {}
        }
    }
    if liveness::is_shift(insn.mnemonic()) && insn.op_kind(insn.op_count() - 1) == OpKind::Immediate8 {
        add(8, insn.immediate(insn.op_count() - 1) as u32);
    }
    Some(shape)
}

/// How an instruction is done.
fn way(vm: &VmShared, insn: &Instruction, key: Key) -> (Way, Option<Plan>) {
    let simple = |way| (way, None);
    if native::does_nothing(vm, insn) && insn.mnemonic() != M::Pause {
        return simple(Way::Nothing);
    }
    let class = classify(vm, insn, key.block_key());
    if class == Class::System {
        return simple(system_way(vm, insn, key));
    }
    if key.compat() && names_other_segment(insn) {
        let next = insn.flow_control() == FlowControl::Next;
        return simple(if next { Way::Callout } else { Way::Depart });
    }
    if class == Class::Interpreted && strings::Kind::of(insn).is_some() {
        return simple(Way::Special);
    }
    if class == Class::Interpreted && strings::Single::of(insn).is_some() {
        return simple(Way::Special);
    }
    if has_string_operand(insn) {
        return simple(if class == Class::Interpreted { Way::Callout } else { Way::Depart });
    }
    match insn.mnemonic() {
        M::Jmp | M::Call | M::Ret => return simple(branch_way(insn)),
        _ if insn.is_jcc_short_or_near() => return simple(branch_way(insn)),
        M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz | M::Jcxz => return simple(Way::Hand),
        M::Push
            if insn.stack_pointer_increment() == -(key.width() as i32)
                && !(insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register())
                && (insn.op0_kind() != OpKind::Memory || reaches(insn)) =>
        {
            return simple(Way::Special);
        }
        M::Bt | M::Bts | M::Btr | M::Btc if is_bit_string(insn) => return simple(Way::Special),
        M::Pop
            if insn.stack_pointer_increment() == key.width() as i32
                && insn.op0_kind() == OpKind::Register
                && insn.op0_register().is_gpr() =>
        {
            return simple(Way::Special);
        }
        M::Leave if matches!(insn.code(), Code::Leaveq | Code::Leaved) => return simple(Way::Special),
        // It has no operands, so no plan; most vector functions of C libraries end with it.
        M::Vzeroupper if key.avx() => return simple(Way::Special),
        M::Lea if reaches(insn) => return simple(Way::Native),
        M::Lea => return simple(Way::Callout),
        _ => {}
    }
    let plan = native::plan(vm, insn);
    match plan {
        Some(plan) if can_reencode(insn, &plan, key) => (Way::Native, Some(plan)),
        _ if insn.flow_control() == FlowControl::Next => simple(Way::Callout),
        _ => simple(Way::Depart),
    }
}

/// Whether an instruction may change more than registers and memory, so that it cannot be undone.
pub(crate) fn is_done_once(vm: &VmShared, insn: &Instruction, key: Key) -> bool {
    classify(vm, insn, key.block_key()) == Class::System && !is_harmless(insn, key)
}

/// Whether a system instruction changes nothing but registers and memory. There are more; these are frequent.
fn is_harmless(insn: &Instruction, key: Key) -> bool {
    key.mmu() != MmuIndex::User && matches!(insn.mnemonic(), M::Cli | M::Sti | M::Pushfq)
}

/// How a system instruction is done.
fn system_way(vm: &VmShared, insn: &Instruction, key: Key) -> Way {
    let supervisor = key.mmu() != MmuIndex::User;
    if vm.options.jit == Jit::Lockstep && !is_harmless(insn, key) {
        // What they do beyond registers and memory must be done once only.
        return Way::Depart;
    }
    if key.compat() {
        // Many change segments, and whether these are flat is to be seen again after them.
        return if insn.mnemonic() == M::Hlt { Way::Depart } else { Way::Hand };
    }
    match insn.mnemonic() {
        M::Cli | M::Sti | M::Pushfq | M::Swapgs if supervisor => Way::Special,
        M::Syscall if !supervisor => Way::Special,
        M::Sysretq if supervisor => Way::Special,
        M::Rdtsc | M::Rdtscp
            if key.tsc()
                && system::exists(vm, insn)
                && !vm.clock.is_scaled()
                && std::arch::is_x86_feature_detected!("bmi2") =>
        {
            Way::Special
        }
        M::Stac | M::Clac if supervisor && system::exists(vm, insn) => Way::Special,
        M::Mov if insn.op0_kind() == OpKind::Register && insn.op1_register().is_segment_register() => {
            Way::Special
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase
            if insn.op0_register().is_gpr64() && system::exists(vm, insn) =>
        {
            Way::Special
        }
        // There is nothing to go on to.
        M::Hlt => Way::Depart,
        _ if insn.flow_control() != FlowControl::Next => Way::Hand,
        _ => Way::Callout,
    }
}

/// How a near branch is done.
pub(super) fn branch_way(insn: &Instruction) -> Way {
    use Code::*;
    let target = target_of(insn);
    let usual = || matches!(insn.code(), Jmp_rm64 | Call_rm64 | Jmp_rm32 | Call_rm32);
    let ordinary = match insn.op0_kind() {
        _ if insn.mnemonic() == M::Ret => {
            matches!(insn.code(), Retnq | Retnq_imm16 | Retnd | Retnd_imm16)
        }
        OpKind::NearBranch64 | OpKind::NearBranch32 => target as i32 as i64 == target as i64,
        // The stack pointer as a target would have to be read in the middle of a push.
        OpKind::Register => usual() && insn.op0_register().full_register() != Register::RSP,
        OpKind::Memory => usual() && reaches(insn),
        _ => false,
    };
    if ordinary { Way::Special } else { Way::Depart }
}

/// Whether the address of the memory operand can be computed as it is encoded.
pub(super) fn reaches(insn: &Instruction) -> bool {
    let displacement = insn.memory_displacement64() as i64;
    // Addresses of 16 bits are left to the handlers.
    let short = [insn.memory_base(), insn.memory_index()].into_iter().any(Register::is_gpr16)
        || insn.memory_base() == Register::None && insn.memory_displ_size() == 2;
    let odd = insn.memory_base() == Register::EIP || insn.memory_index().is_vector_register();
    !short && !odd && fits(insn, displacement)
}

/// Whether a displacement can be encoded: in 32-bit code any can, for sums are cut to 32 bits.
fn fits(insn: &Instruction, displacement: i64) -> bool {
    displacement as i32 as i64 == displacement || insn.code_size() == CodeSize::Code32
}

/// Whether an instruction's operand lies in a segment that need not be flat, or not writable, when DS, ES and SS
/// are both.
fn names_other_segment(insn: &Instruction) -> bool {
    let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    memory && matches!(insn.memory_segment(), Register::CS | Register::FS | Register::GS)
}

/// Whether it is a bit instruction whose bit number, in a register, reaches beyond the operand, and which the host
/// can execute on the operand where it is for the host.
fn is_bit_string(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register
        && insn.op1_register().size() >= 4
        && reaches(insn)
        && Form::of(insn).is_wide()
        && std::arch::is_x86_feature_detected!("bmi2")
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
