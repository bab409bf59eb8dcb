//! Operands that an instruction has by its encoding, not by a field of it.
//!
//! The decoder's library knows them too, in tables that it makes when they are first asked for: half a megabyte,
//! and some milliseconds of each machine's start.

use crate::regs;
use iced_x86::{Code as C, Instruction};

/// Guest registers that an operand of the instruction is by its encoding.
#[rustfmt::skip]
pub(crate) fn fixed_operands(insn: &Instruction) -> u16 {
    let code = insn.code();
    let rax = matches!(code, 
        C::Add_AL_imm8 | C::Add_AX_imm16 | C::Add_EAX_imm32 | C::Add_RAX_imm32 | C::Or_AL_imm8 |
        C::Or_AX_imm16 | C::Or_EAX_imm32 | C::Or_RAX_imm32 | C::Adc_AL_imm8 | C::Adc_AX_imm16 |
        C::Adc_EAX_imm32 | C::Adc_RAX_imm32 | C::Sbb_AL_imm8 | C::Sbb_AX_imm16 | C::Sbb_EAX_imm32 |
        C::Sbb_RAX_imm32 | C::And_AL_imm8 | C::And_AX_imm16 | C::And_EAX_imm32 | C::And_RAX_imm32 |
        C::Sub_AL_imm8 | C::Sub_AX_imm16 | C::Sub_EAX_imm32 | C::Sub_RAX_imm32 | C::Xor_AL_imm8 |
        C::Xor_AX_imm16 | C::Xor_EAX_imm32 | C::Xor_RAX_imm32 | C::Cmp_AL_imm8 | C::Cmp_AX_imm16 |
        C::Cmp_EAX_imm32 | C::Cmp_RAX_imm32 | C::Xchg_r16_AX | C::Xchg_r32_EAX | C::Xchg_r64_RAX |
        C::Mov_AL_moffs8 | C::Mov_AX_moffs16 | C::Mov_EAX_moffs32 | C::Mov_RAX_moffs64 | C::Mov_moffs8_AL |
        C::Mov_moffs16_AX | C::Mov_moffs32_EAX | C::Mov_moffs64_RAX | C::Test_AL_imm8 | C::Test_AX_imm16 |
        C::Test_EAX_imm32 | C::Test_RAX_imm32 | C::Stosb_m8_AL | C::Stosw_m16_AX | C::Stosd_m32_EAX |
        C::Stosq_m64_RAX | C::Lodsb_AL_m8 | C::Lodsw_AX_m16 | C::Lodsd_EAX_m32 | C::Lodsq_RAX_m64 |
        C::Scasb_AL_m8 | C::Scasw_AX_m16 | C::Scasd_EAX_m32 | C::Scasq_RAX_m64 | C::Fnstsw_AX | C::Fstsw_AX
        | C::Fstdw_AX | C::Fstsg_AX | C::In_AL_imm8 | C::In_AX_imm8 | C::In_EAX_imm8 | C::Out_imm8_AL |
        C::Out_imm8_AX | C::Out_imm8_EAX | C::In_AL_DX | C::In_AX_DX | C::In_EAX_DX | C::Out_DX_AL |
        C::Out_DX_AX | C::Out_DX_EAX | C::Fnstdw_AX | C::Fnstsg_AX
    );
    let rcx = matches!(code, 
        C::Rol_rm8_CL | C::Ror_rm8_CL | C::Rcl_rm8_CL | C::Rcr_rm8_CL | C::Shl_rm8_CL | C::Shr_rm8_CL |
        C::Sal_rm8_CL | C::Sar_rm8_CL | C::Rol_rm16_CL | C::Rol_rm32_CL | C::Rol_rm64_CL | C::Ror_rm16_CL |
        C::Ror_rm32_CL | C::Ror_rm64_CL | C::Rcl_rm16_CL | C::Rcl_rm32_CL | C::Rcl_rm64_CL | C::Rcr_rm16_CL
        | C::Rcr_rm32_CL | C::Rcr_rm64_CL | C::Shl_rm16_CL | C::Shl_rm32_CL | C::Shl_rm64_CL |
        C::Shr_rm16_CL | C::Shr_rm32_CL | C::Shr_rm64_CL | C::Sal_rm16_CL | C::Sal_rm32_CL | C::Sal_rm64_CL
        | C::Sar_rm16_CL | C::Sar_rm32_CL | C::Sar_rm64_CL | C::Shld_rm16_r16_CL | C::Shld_rm32_r32_CL |
        C::Shld_rm64_r64_CL | C::Shrd_rm16_r16_CL | C::Shrd_rm32_r32_CL | C::Shrd_rm64_r64_CL
    );
    let rdx = matches!(code, 
        C::Insb_m8_DX | C::Insw_m16_DX | C::Insd_m32_DX | C::Outsb_DX_m8 | C::Outsw_DX_m16 | C::Outsd_DX_m32
        | C::In_AL_DX | C::In_AX_DX | C::In_EAX_DX | C::Out_DX_AL | C::Out_DX_AX | C::Out_DX_EAX
    );
    (rax as u16) << regs::RAX | (rcx as u16) << regs::RCX | (rdx as u16) << regs::RDX
}

/// Whether it has its memory operand's address in full (SDM vol. 2A, §3.1.1.3, moffs).
pub(crate) fn has_full_address(insn: &Instruction) -> bool {
    matches!(
        insn.code(),
        C::Mov_AL_moffs8
            | C::Mov_AX_moffs16
            | C::Mov_EAX_moffs32
            | C::Mov_RAX_moffs64
            | C::Mov_moffs8_AL
            | C::Mov_moffs16_AX
            | C::Mov_moffs32_EAX
            | C::Mov_moffs64_RAX
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, OpCodeOperandKind as K};

    #[test]
    fn the_decoder_knows_the_same() {
        for code in Code::values() {
            let (mut insn, info) = (Instruction::default(), code.op_code());
            insn.set_code(code);
            let kinds = || (0..info.op_count()).map(|n| info.op_kind(n));
            let has = |wanted: &[K]| kinds().any(|kind| wanted.contains(&kind)) as u16;
            let expected = has(&[K::al, K::ax, K::eax, K::rax]) << regs::RAX
                | has(&[K::cl]) << regs::RCX
                | has(&[K::dx]) << regs::RDX;
            assert_eq!(fixed_operands(&insn), expected, "{code:?}");
            assert_eq!(has_full_address(&insn), has(&[K::mem_offs]) != 0, "{code:?}");
        }
    }
}
