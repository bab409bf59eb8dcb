//! Which instruction sets the guest's processor has.

use crate::vm::VmShared;
use iced_x86::{CpuidFeature, Instruction};
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;
use x86::cpuid::Leaf;

/// A CPUID bit.
#[derive(Clone, Copy)]
struct Bit {
    function: u32,
    index: u32,
    register: Register,
    bit: u32,
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What an instruction set depends on.
enum Need {
    /// Every processor with long mode has it.
    Nothing,
    Bit(Bit),
    /// No guest has it.
    Never,
}

impl Need {
    /// Add a line here when a CPU model gains an instruction set whose instructions have no handler of
    /// their own.
    fn of(feature: CpuidFeature) -> Need {
        use CpuidFeature::*;
        use Register::*;
        let (function, index, register, bit) = match feature {
            INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | FPU | FPU287 | FPU387 | CPUID
            | PAUSE | MULTIBYTENOP => return Need::Nothing,
            CX8 => (1, 0, Edx, 8),
            CMOV => (1, 0, Edx, 15),
            MMX => (1, 0, Edx, 23),
            FXSR => (1, 0, Edx, 24),
            SSE => (1, 0, Edx, 25),
            SSE2 => (1, 0, Edx, 26),
            SSE3 => (1, 0, Ecx, 0),
            PCLMULQDQ => (1, 0, Ecx, 1),
            SSSE3 => (1, 0, Ecx, 9),
            FMA => (1, 0, Ecx, 12),
            CMPXCHG16B => (1, 0, Ecx, 13),
            SSE4_1 => (1, 0, Ecx, 19),
            SSE4_2 => (1, 0, Ecx, 20),
            MOVBE => (1, 0, Ecx, 22),
            POPCNT => (1, 0, Ecx, 23),
            AES => (1, 0, Ecx, 25),
            XSAVE => (1, 0, Ecx, 26),
            AVX => (1, 0, Ecx, 28),
            F16C => (1, 0, Ecx, 29),
            RDRAND => (1, 0, Ecx, 30),
            BMI1 => (7, 0, Ebx, 3),
            AVX2 => (7, 0, Ebx, 5),
            BMI2 => (7, 0, Ebx, 8),
            RDSEED => (7, 0, Ebx, 18),
            ADX => (7, 0, Ebx, 19),
            SHA => (7, 0, Ebx, 29),
            GFNI => (7, 0, Ecx, 8),
            VAES => (7, 0, Ecx, 9),
            VPCLMULQDQ => (7, 0, Ecx, 10),
            MOVDIRI => (7, 0, Ecx, 27),
            SHA512 => (7, 1, Eax, 0),
            SM3 => (7, 1, Eax, 1),
            SM4 => (7, 1, Eax, 2),
            AVX_VNNI => (7, 1, Eax, 4),
            AVX_IFMA => (7, 1, Eax, 23),
            AVX_VNNI_INT8 => (7, 1, Edx, 4),
            AVX_VNNI_INT16 => (7, 1, Edx, 10),
            XSAVEOPT => (0xd, 1, Eax, 0),
            XSAVEC => (0xd, 1, Eax, 1),
            LZCNT => (0x8000_0001, 0, Ecx, 5),
            SSE4A => (0x8000_0001, 0, Ecx, 6),
            _ => return Need::Never,
        };
        Need::Bit(Bit { function, index, register, bit })
    }
}

/// Whether the guest's processor has an instruction set, and the host's too, which is to execute it.
pub(super) fn has(vm: &VmShared, feature: CpuidFeature) -> bool {
    match Need::of(feature) {
        Need::Nothing => true,
        Need::Never => false,
        Need::Bit(bit) => is_set(&vm.cpuid, bit) && is_set(host_leaves(), bit),
    }
}

/// Whether the guest's processor says that AMD made it.
pub(super) fn is_amd(vm: &VmShared) -> bool {
    // "Auth", of "AuthenticAMD".
    vm.cpuid.iter().any(|leaf| leaf.function == 0 && leaf.ebx == u32::from_le_bytes(*b"Auth"))
}

/// Whether the guest's processor has an instruction.
pub(super) fn has_instruction(vm: &VmShared, insn: &Instruction) -> bool {
    insn.cpuid_features().iter().all(|feature| has(vm, *feature))
}

fn is_set(leaves: &[Leaf], bit: Bit) -> bool {
    let leaf = leaves
        .iter()
        .find(|leaf| leaf.function == bit.function && leaf.index.is_none_or(|index| index == bit.index));
    leaf.is_some_and(|leaf| {
        let value = match bit.register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        };
        value >> bit.bit & 1 != 0
    })
}

/// The leaves of the host that the table above speaks of, read once: CPUID is slow in virtual machines.
fn host_leaves() -> &'static [Leaf] {
    static LEAVES: OnceLock<Vec<Leaf>> = OnceLock::new();
    LEAVES.get_or_init(|| {
        [(1, 0), (7, 0), (7, 1), (0xd, 1), (0x8000_0001, 0)]
            .into_iter()
            .filter(|(function, _)| *function <= __cpuid_count(function & 0x8000_0000, 0).eax)
            .map(|(function, index)| {
                let result = __cpuid_count(function, index);
                Leaf {
                    function,
                    index: Some(index),
                    eax: result.eax,
                    ebx: result.ebx,
                    ecx: result.ecx,
                    edx: result.edx,
                }
            })
            .collect()
    })
}
