//! What executing an instruction takes: which state it needs, how it uses memory, what alignment it
//! insists on.

use super::fixed::has_full_address;
use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory,
    InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register,
};
use x86::reg::rflags;

/// The processor state that an instruction belongs to, and with it the checks before it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// General registers only.
    Plain,
    /// General registers only, but VEX-encoded: not in real-address or virtual-8086 mode.
    PlainVex,
    /// XMM registers, legacy encoding.
    Sse,
    /// XMM and YMM registers, VEX encoding.
    Avx,
    /// MMX registers.
    Mmx,
    /// MMX and XMM registers.
    MmxSse,
    /// The x87 stack.
    X87,
}

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    None,
    Read,
    Write,
    /// Reads and writes, not atomically.
    Modify,
    /// Reads and writes atomically.
    Locked,
}

/// All of it.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) class: Class,
    pub(crate) memory: Memory,
    /// Size of the memory operand in bytes; 0 without.
    pub(crate) size: u16,
    /// The linear address must be a multiple of this.
    pub(crate) align: u16,
    /// Uses MXCSR: rounds, or raises SIMD floating-point exceptions.
    pub(crate) mxcsr: bool,
    /// Flags to set up before it executes: what it reads or may leave alone.
    pub(crate) flags_in: u16,
    /// Flags to keep from its execution.
    pub(crate) flags_out: u16,
    /// General registers it uses and writes, by number, the memory operand's address apart.
    pub(crate) gprs: u16,
    pub(crate) gprs_written: u16,
    /// Vector registers it uses and writes, by number.
    pub(crate) vectors: u16,
    pub(crate) vectors_written: u16,
}

impl Plan {
    /// `None` for instructions that do not execute natively. `insn` must have its memory operand's base,
    /// index and segment removed.
    pub(crate) fn of(insn: &Instruction) -> Option<Plan> {
        if insn.flow_control() != FlowControl::Next
            || insn.is_privileged()
            || insn.is_stack_instruction()
            || insn.is_string_instruction()
            || !operands_suit(insn)
        {
            return None;
        }
        let class = class_of(insn)?;
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(insn, InstructionInfoOptions::NONE);
        let mut plan = Plan {
            class,
            memory: Memory::None,
            size: 0,
            align: 1,
            mxcsr: matches!(class, Class::Sse | Class::Avx | Class::MmxSse) && uses_mxcsr(insn),
            flags_in: 0,
            flags_out: 0,
            gprs: 0,
            gprs_written: 0,
            vectors: 0,
            vectors_written: 0,
        };
        for used in info.used_registers() {
            let register = used.register();
            let written = is_write(used.access());
            if register.is_gpr() {
                let bit = 1 << register.full_register().number();
                plan.gprs |= bit;
                plan.gprs_written |= if written { bit } else { 0 };
            } else if register.is_vector_register() {
                let bit = 1u16.checked_shl(register.number() as u32)?;
                plan.vectors |= bit;
                plan.vectors_written |= if written { bit } else { 0 };
            }
        }
        match info.used_memory() {
            [] => {}
            [memory] => {
                plan.memory = match memory.access() {
                    OpAccess::Read | OpAccess::CondRead => Memory::Read,
                    OpAccess::Write | OpAccess::CondWrite => Memory::Write,
                    OpAccess::ReadWrite | OpAccess::ReadCondWrite => Memory::Modify,
                    OpAccess::None | OpAccess::NoMemAccess => return None,
                };
                if plan.memory == Memory::Modify
                    && (insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg)
                {
                    plan.memory = Memory::Locked;
                }
                plan.size = memory.memory_size().size() as u16;
                plan.align = alignment(insn, plan.size);
                if plan.size == 0 || plan.size > 64 {
                    return None;
                }
            }
            _ => return None,
        }
        // What the manual leaves undefined a processor may well leave unchanged; what depends on a count
        // of zero it does.
        match is_shift(insn.mnemonic()) {
            true => (plan.flags_in, plan.flags_out) = (rflags::STATUS as u16, rflags::STATUS as u16),
            false => {
                plan.flags_in = status(insn.rflags_read() | insn.rflags_undefined());
                plan.flags_out = status(insn.rflags_modified());
            }
        }
        Some(plan)
    }
}

/// RFLAGS bits of iced's flags: status flags lie in the low half.
fn status(flags: u32) -> u16 {
    use iced_x86::RflagsBits as F;
    use rflags::*;
    [(F::CF, CF), (F::PF, PF), (F::AF, AF), (F::ZF, ZF), (F::SF, SF), (F::OF, OF)]
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, flag)| flag as u16)
        .sum()
}

pub(super) fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Whether every operand is one that a function with the same registers can have.
fn operands_suit(insn: &Instruction) -> bool {
    (0..insn.op_count()).all(|operand| match insn.op_kind(operand) {
        OpKind::Register => {
            let register = insn.op_register(operand);
            register.is_gpr()
                || register.is_xmm()
                || register.is_ymm()
                || register.is_mm()
                || register.is_st()
        }
        OpKind::Memory => !has_full_address(insn),
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => true,
        _ => false,
    })
}

fn is_x87(insn: &Instruction) -> bool {
    use CpuidFeature::*;
    insn.cpuid_features().iter().any(|feature| matches!(feature, FPU | FPU287 | FPU387))
}

fn class_of(insn: &Instruction) -> Option<Class> {
    let vex = match insn.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    let registers = || {
        (0..insn.op_count()).filter(|op| insn.op_kind(*op) == OpKind::Register).map(|op| insn.op_register(op))
    };
    // A conversion from memory to a general register names no vector register.
    let vector = registers().any(|register| register.is_vector_register()) || uses_mxcsr(insn);
    let mmx = registers().any(Register::is_mm)
        || insn.mnemonic() == Mnemonic::Emms
        || is_mmx_conversion(insn.code());
    Some(match () {
        _ if is_x87(insn) => Class::X87,
        _ if vex && vector => Class::Avx,
        _ if mmx && vector => Class::MmxSse,
        _ if mmx => Class::Mmx,
        _ if vector => Class::Sse,
        _ if !is_plain(insn.mnemonic()) => return None,
        _ if vex => Class::PlainVex,
        _ => Class::Plain,
    })
}

/// CVTPI2PS switches to MMX state even when its source is memory.
fn is_mmx_conversion(code: Code) -> bool {
    code == Code::Cvtpi2ps_xmm_mmm64
}

/// Instructions on general registers that may execute natively: no control flow, no stack, no system
/// state, and no way to raise an exception beyond those of their memory operand.
fn is_plain(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Adc | Adcx
            | Add
            | Adox
            | And
            | Andn
            | Bextr
            | Blsi
            | Blsmsk
            | Blsr
            | Bsf
            | Bsr
            | Bswap
            | Bt
            | Btc
            | Btr
            | Bts
            | Bzhi
            | Cbw
            | Cdq
            | Cdqe
            | Clc
            | Cmc
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
            | Cmp
            | Cmpxchg
            | Cmpxchg16b
            | Cmpxchg8b
            | Cqo
            | Crc32
            | Cwd
            | Cwde
            | Dec
            | Div
            | Idiv
            | Imul
            | Inc
            | Lahf
            | Lfence
            | Lzcnt
            | Mfence
            | Mov
            | Movbe
            | Movdiri
            | Movnti
            | Movsx
            | Movsxd
            | Movzx
            | Mul
            | Mulx
            | Neg
            | Not
            | Or
            | Pdep
            | Pext
            | Popcnt
            | Rcl
            | Rcr
            | Rdrand
            | Rdseed
            | Rol
            | Ror
            | Rorx
            | Sahf
            | Sal
            | Sar
            | Sarx
            | Sbb
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
            | Sfence
            | Shl
            | Shld
            | Shlx
            | Shr
            | Shrd
            | Shrx
            | Stc
            | Sub
            | Test
            | Tzcnt
            | Xadd
            | Xchg
            | Xor
    )
}

/// Instructions that leave flags alone when their count is zero, and some when it is not one.
fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd)
}

/// What the linear address must be a multiple of (SDM vol. 1, §4.1.1 and §14.9).
fn alignment(insn: &Instruction, size: u16) -> u16 {
    use Mnemonic::*;
    match (insn.encoding(), insn.mnemonic()) {
        (EncodingKind::VEX, Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa) => size,
        (EncodingKind::VEX, _) => 1,
        (_, Cmpxchg16b) => 16,
        (
            _,
            Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestri64 | Pcmpestrm | Pcmpestrm64 | Pcmpistri
            | Pcmpistrm,
        ) => 1,
        (_, _) if size == 16 => 16,
        _ => 1,
    }
}

/// Instructions that need alignment on Intel's processors and none on AMD's.
pub(super) fn is_lenient(insn: &Instruction) -> bool {
    insn.cpuid_features() == [CpuidFeature::SHA]
}

/// Instructions that round or raise SIMD floating-point exceptions.
fn uses_mxcsr(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let fused = insn.cpuid_features().contains(&CpuidFeature::FMA);
    fused
        || matches!(
            insn.mnemonic(),
            Addpd
                | Addps
                | Addsd
                | Addss
                | Addsubpd
                | Addsubps
                | Cmppd
                | Cmpps
                | Cmpsd
                | Cmpss
                | Comisd
                | Comiss
                | Cvtdq2pd
                | Cvtdq2ps
                | Cvtpd2dq
                | Cvtpd2pi
                | Cvtpd2ps
                | Cvtpi2pd
                | Cvtpi2ps
                | Cvtps2dq
                | Cvtps2pd
                | Cvtps2pi
                | Cvtsd2si
                | Cvtsd2ss
                | Cvtsi2sd
                | Cvtsi2ss
                | Cvtss2sd
                | Cvtss2si
                | Cvttpd2dq
                | Cvttpd2pi
                | Cvttps2dq
                | Cvttps2pi
                | Cvttsd2si
                | Cvttss2si
                | Divpd
                | Divps
                | Divsd
                | Divss
                | Dppd
                | Dpps
                | Haddpd
                | Haddps
                | Hsubpd
                | Hsubps
                | Maxpd
                | Maxps
                | Maxsd
                | Maxss
                | Minpd
                | Minps
                | Minsd
                | Minss
                | Mulpd
                | Mulps
                | Mulsd
                | Mulss
                | Roundpd
                | Roundps
                | Roundsd
                | Roundss
                | Sqrtpd
                | Sqrtps
                | Sqrtsd
                | Sqrtss
                | Subpd
                | Subps
                | Subsd
                | Subss
                | Ucomisd
                | Ucomiss
        )
        || matches!(
            insn.mnemonic(),
            Vaddpd
                | Vaddps
                | Vaddsd
                | Vaddss
                | Vaddsubpd
                | Vaddsubps
                | Vcmppd
                | Vcmpps
                | Vcmpsd
                | Vcmpss
                | Vcomisd
                | Vcomiss
                | Vcvtdq2pd
                | Vcvtdq2ps
                | Vcvtpd2dq
                | Vcvtpd2ps
                | Vcvtph2ps
                | Vcvtps2dq
                | Vcvtps2pd
                | Vcvtps2ph
                | Vcvtsd2si
                | Vcvtsd2ss
                | Vcvtsi2sd
                | Vcvtsi2ss
                | Vcvtss2sd
                | Vcvtss2si
                | Vcvttpd2dq
                | Vcvttps2dq
                | Vcvttsd2si
                | Vcvttss2si
                | Vdivpd
                | Vdivps
                | Vdivsd
                | Vdivss
                | Vdppd
                | Vdpps
                | Vhaddpd
                | Vhaddps
                | Vhsubpd
                | Vhsubps
                | Vmaxpd
                | Vmaxps
                | Vmaxsd
                | Vmaxss
                | Vminpd
                | Vminps
                | Vminsd
                | Vminss
                | Vmulpd
                | Vmulps
                | Vmulsd
                | Vmulss
                | Vroundpd
                | Vroundps
                | Vroundsd
                | Vroundss
                | Vsqrtpd
                | Vsqrtps
                | Vsqrtsd
                | Vsqrtss
                | Vsubpd
                | Vsubps
                | Vsubsd
                | Vsubss
                | Vucomisd
                | Vucomiss
        )
}
