//! Instruction forms: for an opcode, operands at random and the registers that make its addresses.

use crate::case::{
    Bits, CODE, CODE_LEN_MAX, Case, DATA, DATA_LEN, GS_BASE, READ_ONLY, State, Until, WINDOW_LEN,
};
use crate::inputs;
use crate::random::Random;
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, FlowControl, Instruction, MemorySize,
    Mnemonic, OpCodeOperandKind, OpKind, Register,
};

/// Opcodes that user code can execute and whose results do not depend on the machine.
pub(crate) fn codes(bits: Bits) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| is_tested(*code, bits) && code.flow_control() == FlowControl::Next)
}

/// Near branches.
pub(crate) fn branches(bits: Bits) -> impl Iterator<Item = Code> {
    use Mnemonic::{Call, Jcxz, Jecxz, Jmp, Jrcxz, Loop, Loope, Loopne, Ret};
    Code::values().filter(move |code| {
        let branch = code.is_jcc_short_or_near()
            || matches!(code.mnemonic(), Call | Jmp | Ret | Jcxz | Jecxz | Jrcxz | Loop | Loope | Loopne);
        let far = matches!(
            code.op_code().memory_size(),
            MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64
        );
        branch && !far && is_tested(*code, bits)
    })
}

fn is_tested(code: Code, bits: Bits) -> bool {
    let info = code.op_code();
    code != Code::INVALID
        && info.is_instruction()
        && (if bits == Bits::B64 { info.mode64() } else { info.mode32() })
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !code.is_privileged()
        && code.cpuid_features().iter().all(|feature| has(*feature))
        && !depends_on_machine(code.mnemonic())
        && (0..info.op_count()).all(|op| !is_system_register(info.op_kind(op)))
        // WAIT and the instruction after it.
        && !is_waiting_pair(code)
}

/// Instruction sets that an engine may expose. What a host lacks raises #UD on both sides.
fn has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | FPU
            | FPU287
            | FPU387
            | MULTIBYTENOP
            | PAUSE
            | CX8
            | CMOV
            | MMX
            | SSE
            | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | SSE4A
            | POPCNT
            | AES
            | PCLMULQDQ
            | AVX
            | AVX2
            | F16C
            | FMA
            | BMI1
            | BMI2
            | LZCNT
            | MOVBE
            | ADX
            | SHA
            | GFNI
            | VAES
            | VPCLMULQDQ
            | AVX_VNNI
            | CMPXCHG16B
            | PREFETCHW
            | CLDEMOTE
    )
}

fn depends_on_machine(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cpuid
            | Rdtsc
            | Rdtscp
            | Rdpmc
            | Rdpid
            | Rdrand
            | Rdseed
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lar
            | Lsl
            | Verr
            | Arpl
            | Verw
            | Xgetbv
            | Popf
            | Popfd
            | Popfq
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | In
            | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Xsave
            | Xsave64
            | Xsaveopt
            | Xsaveopt64
            | Xsavec
            | Xsavec64
            | Xrstor
            | Xrstor64
            | Rdfsbase
            | Rdgsbase
            | Wrfsbase
            | Wrgsbase
            | Cli
            | Sti
            | Clflush
            | Clflushopt
            | Clwb
            | Monitor
            | Mwait
    )
}

/// Operands that no case has: segment, control and debug registers, far pointers, absolute addresses of
/// 64 bits, mask registers.
fn is_system_register(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        seg_reg
            | cr_reg
            | dr_reg
            | tr_reg
            | bnd_reg
            | es
            | cs
            | ss
            | ds
            | fs
            | gs
            | farbr2_2
            | farbr4_2
            | k_reg
            | kp1_reg
            | k_rm
            | k_vvvv
            | k_or_mem
            | mem_mpx
            | mem_mib
            | sibmem
            | tmm_reg
            | tmm_rm
            | tmm_vvvv
            | xmmp3_vvvv
            | zmm_reg
            | zmm_rm
            | zmm_vvvv
            | zmm_or_mem
            | r16_reg_mem
            | r32_reg_mem
            | r64_reg_mem
            | imm4_m2z
            | bnd_or_mem_mpx
            | r32_or_mem_mpx
            | r64_or_mem_mpx
    )
}

fn is_waiting_pair(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fstcw_m2byte
            | Fstenv_m14byte
            | Fstenv_m28byte
            | Fstsw_m2byte
            | Fstsw_AX
            | Fclex
            | Finit
            | Feni
            | Fdisi
            | Fsetpm
            | Fsave_m94byte
            | Fsave_m108byte
            | Fstdw_AX
            | Fstsg_AX
    )
}

/// Makes a case of `code`; `None` when the operands chosen do not go together (try again).
pub(crate) fn case(code: Code, bits: Bits, random: &mut Random) -> Option<Case> {
    let mut state = inputs::state(random);
    let mut insn = operands(code, bits, random)?;
    let mut case = Case {
        bits,
        until: Until::End,
        state,
        code: [0; CODE_LEN_MAX],
        code_len: 0,
        window_at: random.below((DATA_LEN - WINDOW_LEN) as u64) as u32,
        window: [0; WINDOW_LEN],
    };
    fill_window(random, &mut case.window);
    let info = code.op_code();
    if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory {
        insn.set_has_lock_prefix(random.percent(30));
    }
    if insn.is_string_instruction() {
        prepare_string(&mut insn, &mut state, random);
    }
    if (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory) {
        let target = address(&insn, bits, random);
        match bits {
            Bits::B64 if random.percent(8) => {
                insn.set_segment_prefix(Register::GS);
                place(&mut insn, &mut state, target.wrapping_sub(GS_BASE), random)?;
            }
            Bits::B64 => place(&mut insn, &mut state, target, random)?,
            Bits::B32 => place_32(&mut insn, &mut state, target, random)?,
        }
        if let Some(at) = target.checked_sub(DATA).filter(|at| *at < DATA_LEN as u64) {
            case.window_at = (at as usize).saturating_sub(32).min(DATA_LEN - WINDOW_LEN) as u32;
        }
    }
    if (0..insn.op_count()).any(|op| matches!(insn.op_kind(op), OpKind::MemorySegRDI | OpKind::MemorySegEDI))
    {
        state.gpr[7] = address(&insn, bits, random);
    }
    case.state = state;
    encode(&mut case, &insn)?;
    Some(case)
}

/// Puts an instruction in a case.
fn encode(case: &mut Case, insn: &Instruction) -> Option<()> {
    let (bits, at) = (case.bits as u32, case.state.rip);
    let mut encoder = Encoder::new(bits);
    encoder.encode(insn, at).ok()?;
    let bytes = encoder.take_buffer();
    // The encoder may choose another form, or a prefix may give it another meaning.
    let back = Decoder::with_ip(bits, &bytes, at, DecoderOptions::NONE).decode();
    if back.code() != insn.code() || back.len() != bytes.len() {
        return None;
    }
    case.code[..bytes.len()].copy_from_slice(&bytes);
    case.code_len = bytes.len() as u32;
    Some(())
}

/// Makes a case of a branch.
pub(crate) fn branch_case(code: Code, bits: Bits, random: &mut Random) -> Option<Case> {
    // In the middle of the page, so that there is room on both sides.
    let at = CODE + 0x800;
    let target = match random.below(8) {
        0 => CODE + random.below(0x1000),
        _ => at - 100 + random.below(200),
    };
    if (at..at + 16).contains(&target) {
        // Into the branch itself: that would go on.
        return None;
    }
    let mut state = inputs::state(random);
    state.rip = at;
    // Counters about to end.
    if random.percent(70) {
        state.gpr[1] = state.gpr[1] & random.pick(&[0, !0xffff, !0xffff_ffff]) | random.below(3);
    }
    let mut insn = operands(code, bits, random)?;
    let mut case = Case {
        bits,
        until: Until::Branched,
        state,
        code: [0; CODE_LEN_MAX],
        code_len: 0,
        window_at: 0,
        window: [0; WINDOW_LEN],
    };
    // Where the target is read from: the operand, or the top of the stack.
    let mut read_at = case.state.gpr[4];
    if insn.op0_kind() == OpKind::Memory {
        read_at = address(&insn, bits, random);
        match bits {
            Bits::B64 => place(&mut insn, &mut case.state, read_at, random)?,
            Bits::B32 => place_32(&mut insn, &mut case.state, read_at, random)?,
        }
    } else if insn.op0_kind() == OpKind::Register {
        case.state.gpr[insn.op0_register().full_register().number()] = target;
    } else if matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
        insn.set_near_branch64(target);
    }
    if let Some(offset) = read_at.checked_sub(DATA).filter(|at| *at < DATA_LEN as u64) {
        let offset = offset as usize;
        case.window_at = offset.saturating_sub(32).min(DATA_LEN - WINDOW_LEN) as u32;
        let inside = offset - case.window_at as usize;
        let len = 8.min(WINDOW_LEN - inside);
        case.window[inside..inside + len].copy_from_slice(&target.to_le_bytes()[..len]);
    }
    encode(&mut case, &insn)?;
    Some(case)
}

/// An instruction with register and immediate operands chosen and the memory operand still empty.
pub(crate) fn operands(code: Code, bits: Bits, random: &mut Random) -> Option<Instruction> {
    use OpCodeOperandKind::*;
    let mut insn = Instruction::default();
    insn.set_code(code);
    let info = code.op_code();
    let mut immediates = 0;
    for op in 0..info.op_count() {
        let number = random.below(bits.registers() as u64) as u32;
        let mut register = |register: Register| {
            insn.set_op_kind(op, OpKind::Register);
            insn.set_op_register(op, register);
        };
        let memory = random.percent(60);
        match info.op_kind(op) {
            r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | mm_or_mem | xmm_or_mem | ymm_or_mem
                if memory =>
            {
                insn.set_op_kind(op, OpKind::Memory)
            }
            mem | mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y | seg_rBX_al => {
                insn.set_op_kind(op, OpKind::Memory)
            }
            mem_offs => {
                insn.set_op_kind(op, OpKind::Memory);
                insn.set_memory_displ_size(bits as u32 / 8);
            }
            r8_or_mem | r8_reg | r8_opcode => register(byte_register(bits, random)),
            r16_or_mem | r16_reg | r16_rm | r16_opcode => register(Register::AX + number),
            r32_or_mem | r32_reg | r32_rm | r32_opcode | r32_vvvv => register(Register::EAX + number),
            r64_or_mem | r64_reg | r64_rm | r64_opcode | r64_vvvv => register(Register::RAX + number),
            mm_or_mem | mm_reg | mm_rm => register(Register::MM0 + number % 8),
            xmm_or_mem | xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 => register(Register::XMM0 + number),
            ymm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => register(Register::YMM0 + number),
            al => register(Register::AL),
            cl => register(Register::CL),
            ax => register(Register::AX),
            dx => register(Register::DX),
            eax => register(Register::EAX),
            rax => register(Register::RAX),
            st0 => register(Register::ST0),
            sti_opcode => register(Register::ST0 + number % 8),
            imm8_const_1 => {
                insn.set_op_kind(op, OpKind::Immediate8);
                insn.set_immediate8(1);
            }
            imm8 if immediates > 0 => {
                insn.set_op_kind(op, OpKind::Immediate8_2nd);
                insn.set_immediate8_2nd(if code == Code::Enterq_imm16_imm8 {
                    number as u8 % 4
                } else {
                    random.next() as u8
                });
            }
            imm8 => {
                immediates += 1;
                insn.set_op_kind(op, OpKind::Immediate8);
                insn.set_immediate8(random.next() as u8);
            }
            imm8sex16 => {
                insn.set_op_kind(op, OpKind::Immediate8to16);
                insn.set_immediate8to16(random.next() as i8 as i16);
            }
            imm8sex32 => {
                insn.set_op_kind(op, OpKind::Immediate8to32);
                insn.set_immediate8to32(random.next() as i8 as i32);
            }
            imm8sex64 => {
                insn.set_op_kind(op, OpKind::Immediate8to64);
                insn.set_immediate8to64(random.next() as i8 as i64);
            }
            imm16 => {
                immediates += 1;
                insn.set_op_kind(op, OpKind::Immediate16);
                let enter = code.mnemonic() == Mnemonic::Enter;
                insn.set_immediate16(if enter {
                    random.below(64) as u16
                } else {
                    inputs::integer(random) as u16
                });
            }
            imm32 => {
                insn.set_op_kind(op, OpKind::Immediate32);
                insn.set_immediate32(inputs::integer(random) as u32);
            }
            imm32sex64 => {
                insn.set_op_kind(op, OpKind::Immediate32to64);
                insn.set_immediate32to64(inputs::integer(random) as i32 as i64);
            }
            imm64 => {
                insn.set_op_kind(op, OpKind::Immediate64);
                insn.set_immediate64(inputs::integer(random));
            }
            seg_rSI if bits == Bits::B64 => insn.set_op_kind(op, OpKind::MemorySegRSI),
            es_rDI if bits == Bits::B64 => insn.set_op_kind(op, OpKind::MemoryESRDI),
            seg_rDI if bits == Bits::B64 => insn.set_op_kind(op, OpKind::MemorySegRDI),
            seg_rSI => insn.set_op_kind(op, OpKind::MemorySegESI),
            es_rDI => insn.set_op_kind(op, OpKind::MemoryESEDI),
            seg_rDI => insn.set_op_kind(op, OpKind::MemorySegEDI),
            br16_1 | br16_2 => insn.set_op_kind(op, OpKind::NearBranch16),
            br32_1 | br32_4 => insn.set_op_kind(op, OpKind::NearBranch32),
            br64_1 | br64_4 => insn.set_op_kind(op, OpKind::NearBranch64),
            _ => return Option::None,
        }
    }
    Some(insn)
}

fn byte_register(bits: Bits, random: &mut Random) -> Register {
    // AL to BH, then SPL to R15L.
    Register::AL + random.below(if bits == Bits::B64 { 20 } else { 8 }) as u32
}

/// Counts and addresses of string instructions: short runs over the data, up or down.
fn prepare_string(insn: &mut Instruction, state: &mut State, random: &mut Random) {
    let info = insn.op_code();
    if random.percent(60) {
        if info.can_use_rep_prefix() {
            insn.set_has_rep_prefix(true);
        }
        if info.can_use_repne_prefix() && random.percent(50) {
            insn.set_has_rep_prefix(false);
            insn.set_has_repne_prefix(true);
        }
    }
    state.gpr[1] = random.below(40);
    if random.percent(25) {
        state.rflags |= 1 << 10;
    }
    for register in [6, 7] {
        state.gpr[register] = match random.below(8) {
            0 => DATA + DATA_LEN as u64 - random.below(64),
            1 => READ_ONLY + random.below(64),
            2 => DATA + random.below(32),
            _ => DATA + 0x400 + random.below(0x200),
        };
    }
}

/// Where the memory operand is to be: mostly in writable data, sometimes at the edge of what is there.
fn address(insn: &Instruction, bits: Bits, random: &mut Random) -> u64 {
    let size = insn.memory_size().size().max(1) as u64;
    let alignment = if random.percent(75) { size.next_power_of_two().min(64) } else { 1 };
    let inside = DATA + 0x100 + random.below(DATA_LEN as u64 - 0x300) / alignment * alignment;
    match random.below(100) {
        // Across two pages.
        0..5 => DATA + 0x1000 - random.below(size + 1),
        // Up to the missing page or into it.
        5..13 => DATA + DATA_LEN as u64 - random.below(size + 2),
        13..18 => READ_ONLY + random.below(0x1000 - size) / alignment * alignment,
        18..20 => READ_ONLY + 0x1000 - random.below(size + 1),
        20..22 => DATA - random.below(size + 1),
        22..24 if bits == Bits::B64 => 0x8000_0000_0000_0000 | random.next() >> 2,
        _ => inside,
    }
}

/// Gives the instruction an addressing form that leads to `target`, and the registers their values.
fn place(insn: &mut Instruction, state: &mut State, target: u64, random: &mut Random) -> Option<()> {
    if (0..insn.op_count()).any(|op| insn.op_code().op_kind(op) == OpCodeOperandKind::mem_offs) {
        insn.set_memory_displacement64(target);
        return Some(());
    }
    if insn.mnemonic() == Mnemonic::Xlatb {
        insn.set_memory_base(Register::RBX);
        insn.set_memory_index(Register::AL);
        state.gpr[3] = target.wrapping_sub(state.gpr[0] & 0xff);
        return Some(());
    }
    if insn.is_vsib() {
        return place_vector(insn, state, target, random);
    }
    let bits = bit_string_offset(insn, state, random);
    let target = target.wrapping_sub(bits);
    let base = random.below(16) as u8;
    let index = random.below(16) as u8;
    let displacement = match random.below(4) {
        0 => 0,
        1 => random.next() as i8 as i64,
        2 => random.next() as i16 as i64,
        _ => random.next() as i32 as i64 >> 4,
    };
    // Displacements of other sizes than the encoder would choose are not needed.
    let size = |displacement: i64| if displacement == 0 { 0 } else { 1 };
    match random.below(10) {
        // RIP-relative, absolute.
        0 if target < 1 << 31 => {
            insn.set_memory_base(Register::RIP);
            insn.set_memory_displ_size(8);
            insn.set_memory_displacement64(target);
        }
        1 if target < 1 << 31 => {
            insn.set_memory_displ_size(4);
            insn.set_memory_displacement64(target);
        }
        // 32-bit addresses.
        2 if target < 1 << 32 => {
            insn.set_memory_base(Register::EAX + base as u32);
            insn.set_memory_displ_size(size(displacement));
            insn.set_memory_displacement64(displacement as u32 as u64);
            let low = target.wrapping_sub(displacement as u64) & 0xffff_ffff;
            state.gpr[base as usize] = low | random.next() << 32;
        }
        // Base and index.
        3..=5 if index != 4 && index != base => {
            let scale = random.below(4) as u32;
            insn.set_memory_base(Register::RAX + base as u32);
            insn.set_memory_index(Register::RAX + index as u32);
            insn.set_memory_index_scale(1 << scale);
            insn.set_memory_displ_size(size(displacement));
            insn.set_memory_displacement64(displacement as u64);
            if random.percent(80) {
                state.gpr[index as usize] = random.next() as i16 as u64;
            }
            let indexed = state.gpr[index as usize] << scale;
            state.gpr[base as usize] = target.wrapping_sub(indexed).wrapping_sub(displacement as u64);
        }
        _ => {
            insn.set_memory_base(Register::RAX + base as u32);
            insn.set_memory_displ_size(size(displacement));
            insn.set_memory_displacement64(displacement as u64);
            state.gpr[base as usize] = target.wrapping_sub(displacement as u64);
        }
    }
    // What addresses are made of must not change their meaning: a bit index in the base, for example.
    let (now, _) = bit_string(insn, state).unwrap_or((bits, 0));
    (now == bits).then_some(())
}

/// As [`place`], for 32-bit code.
fn place_32(insn: &mut Instruction, state: &mut State, target: u64, random: &mut Random) -> Option<()> {
    insn.set_memory_displ_size(4);
    if (0..insn.op_count()).any(|op| insn.op_code().op_kind(op) == OpCodeOperandKind::mem_offs) {
        insn.set_memory_displacement64(target);
        return Some(());
    }
    if insn.mnemonic() == Mnemonic::Xlatb {
        insn.set_memory_displ_size(0);
        insn.set_memory_base(Register::EBX);
        insn.set_memory_index(Register::AL);
        state.gpr[3] = target.wrapping_sub(state.gpr[0] & 0xff);
        return Some(());
    }
    if insn.is_vsib() {
        return None;
    }
    let bits = bit_string_offset(insn, state, random);
    let target = target.wrapping_sub(bits);
    let (base, index) = (random.below(8) as usize, random.below(8) as usize);
    let displacement =
        if random.percent(50) { random.next() as i8 as i64 } else { random.next() as i32 as i64 };
    match random.below(4) {
        0 => insn.set_memory_displacement64(target as u32 as u64),
        1..=2 if index != 4 && index != base => {
            let scale = random.below(4) as u32;
            insn.set_memory_base(Register::EAX + base as u32);
            insn.set_memory_index(Register::EAX + index as u32);
            insn.set_memory_index_scale(1 << scale);
            insn.set_memory_displ_size(1);
            insn.set_memory_displacement64(displacement as u32 as u64);
            let indexed = state.gpr[index] << scale;
            state.gpr[base] = target.wrapping_sub(indexed).wrapping_sub(displacement as u64);
        }
        _ => {
            insn.set_memory_base(Register::EAX + base as u32);
            insn.set_memory_displ_size(1);
            insn.set_memory_displacement64(displacement as u32 as u64);
            state.gpr[base] = target.wrapping_sub(displacement as u64);
        }
    }
    let (now, _) = bit_string(insn, state).unwrap_or((bits, 0));
    (now == bits).then_some(())
}

/// For bit tests with a register index: keeps the index near, and returns the distance in bytes that it
/// makes.
fn bit_string_offset(insn: &Instruction, state: &mut State, random: &mut Random) -> u64 {
    let Some((_, number)) = bit_string(insn, state) else { return 0 };
    let near = (random.next() as i64 >> 52) as u64;
    // With a small operand the upper half of the register does not count.
    let upper = if insn.memory_size().size() < 8 { !0xffff_ffff } else { 0 };
    state.gpr[number] = state.gpr[number] & upper | near & !upper;
    bit_string(insn, state).map_or(0, |(offset, _)| offset)
}

/// The distance in bytes that a bit test's register index makes, and the register.
fn bit_string(insn: &Instruction, state: &State) -> Option<(u64, usize)> {
    use Mnemonic::*;
    if !matches!(insn.mnemonic(), Bt | Bts | Btr | Btc) || insn.op1_kind() != OpKind::Register {
        return None;
    }
    let number = insn.op1_register().number();
    let index = state.gpr[number];
    let offset = match insn.op1_register().size() {
        2 => (index as i16 as i64 >> 4) * 2,
        4 => (index as i32 as i64 >> 5) * 4,
        _ => (index as i64 >> 6) * 8,
    };
    Some((offset as u64, number))
}

/// A vector of indices around `target`, some of them leading to nowhere.
fn place_vector(insn: &mut Instruction, state: &mut State, target: u64, random: &mut Random) -> Option<()> {
    use OpCodeOperandKind::*;
    let kind = (0..insn.op_count())
        .map(|op| insn.op_code().op_kind(op))
        .find(|kind| matches!(kind, mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y))?;
    let number = random.below(16) as usize;
    let base = random.below(16) as usize;
    let scale = random.below(4) as u32;
    let ymm = matches!(kind, mem_vsib32y | mem_vsib64y);
    let first = if ymm { Register::YMM0 } else { Register::XMM0 };
    insn.set_memory_base(Register::RAX + base as u32);
    insn.set_memory_index(first + number as u32);
    insn.set_memory_index_scale(1 << scale);
    insn.set_memory_displ_size(1);
    insn.set_memory_displacement64(8);
    state.gpr[base] = target.wrapping_sub(8);
    let mut near = || match random.below(12) {
        0 => random.next() as i16 as i64,
        _ => random.next() as i8 as i64 / 2,
    };
    state.ymm[number] = std::array::from_fn(|_| match kind {
        mem_vsib64x | mem_vsib64y => near() as u64,
        _ => near() as u32 as u64 | (near() as u64) << 32,
    });
    // The mask: mostly all or random.
    let mask = insn.op2_register().number();
    if random.percent(30) {
        state.ymm[mask] = [u64::MAX; 4];
    }
    Some(())
}

/// Bytes that mean something as numbers of one format or another.
pub(crate) fn fill_window(random: &mut Random, window: &mut [u8; WINDOW_LEN]) {
    let kind = random.below(9);
    if kind == 8 {
        for chunk in window.chunks_mut(10) {
            let value = inputs::extended(random);
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
        return;
    }
    for chunk in window.chunks_mut(8) {
        chunk.copy_from_slice(&inputs::lane(random, kind).to_le_bytes());
    }
}
