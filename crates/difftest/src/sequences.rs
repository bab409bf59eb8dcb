//! Sequences of instructions without branches, stack or string operations, all of whose memory operands
//! are in the data.

use crate::case::{Bits, CODE, CODE_LEN_MAX, Case, DATA, DATA_LEN, Until, WINDOW_LEN};
use crate::random::Random;
use crate::{forms, inputs};
use iced_x86::code_asm::*;
use iced_x86::{
    Code, Encoder, IcedError, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use std::sync::OnceLock;

/// The register that points at the middle of the data and is never written.
fn base(bits: Bits) -> Register {
    match bits {
        Bits::B64 => Register::R15,
        Bits::B32 => Register::ESI,
    }
}

/// Room for the longest instruction and the jump that the host appends.
const ROOM: usize = 32;

/// A random state with a window of data, which [`base`] leads to, and no code yet.
fn without_code(bits: Bits, random: &mut Random) -> Case {
    let mut case = Case {
        bits,
        until: Until::End,
        state: inputs::state(random),
        code: [0; CODE_LEN_MAX],
        code_len: 0,
        window_at: (DATA_LEN / 2 - WINDOW_LEN / 2) as u32,
        window: [0; WINDOW_LEN],
    };
    forms::fill_window(random, &mut case.window);
    case.state.gpr[base(bits).number()] = DATA + DATA_LEN as u64 / 2;
    case
}

/// Makes a sequence of 10 to 30 of the given opcodes.
pub(crate) fn case(codes: &[Code], bits: Bits, random: &mut Random) -> Case {
    let mut case = without_code(bits, random);
    let wanted = 10 + random.below(21);
    let mut len = 0;
    let mut made = 0;
    while made < wanted && len + ROOM < CODE_LEN_MAX {
        let Some(bytes) = instruction(random.pick(codes), bits, random, CODE + len as u64) else { continue };
        case.code[len..len + bytes.len()].copy_from_slice(&bytes);
        len += bytes.len();
        made += 1;
    }
    case.code_len = len as u32;
    case
}

/// Kinds of instructions in [`alignment_case`].
pub(crate) const ALIGNMENT_OPCODES: usize = 12;

/// Makes a sequence of accesses, most of them aligned, between which POPF sets and clears RFLAGS.AC.
pub(crate) fn alignment_case(random: &mut Random) -> Result<Case, IcedError> {
    let mut case = without_code(Bits::B64, random);
    // Where the stack may be written while accesses are checked.
    case.state.gpr[4] = DATA + 0x1800;
    let mut a = CodeAssembler::new(64)?;
    for _ in 0..6 + random.below(12) {
        let offset = (random.below(WINDOW_LEN as u64) as i64 - WINDOW_LEN as i64 / 2) & !15;
        let at = r15 + offset as i32 + if random.percent(6) { random.below(16) as i32 } else { 0 };
        match random.below(ALIGNMENT_OPCODES as u64 + 2) {
            0 => a.mov(rax, qword_ptr(at))?,
            1 => a.mov(dword_ptr(at), ecx)?,
            2 => a.add(word_ptr(at), dx)?,
            3 => a.movups(xmm1, ptr(at))?,
            4 => a.movaps(ptr(at), xmm2)?,
            5 => a.movsd_2(xmm3, ptr(at))?,
            6 => a.lock().xadd(qword_ptr(at), rsi)?,
            7 => a.push(qword_ptr(at))?,
            8 => a.pop(qword_ptr(at))?,
            9 => a.fld(qword_ptr(at))?,
            10 => a.vmovdqu(ymm4, ptr(at))?,
            11 => a.crc32(r8d, word_ptr(at))?,
            _ => {
                a.pushfq()?;
                match random.percent(60) {
                    true => a.or(qword_ptr(rsp), 1 << 18)?,
                    false => a.and(qword_ptr(rsp), !(1 << 18))?,
                }
                a.popfq()?;
            }
        }
    }
    let code = a.assemble(CODE)?;
    case.code[..code.len()].copy_from_slice(&code);
    case.code_len = code.len() as u32;
    Ok(case)
}

/// The code of a sequence of instructions of all kinds, for the data at [`DATA`] if R15 points there.
pub(crate) fn mixed(random: &mut Random) -> Vec<u8> {
    static CODES: OnceLock<Vec<Code>> = OnceLock::new();
    let codes = CODES.get_or_init(|| forms::codes(Bits::B64).collect());
    let case = case(codes, Bits::B64, random);
    case.code[..case.code_len as usize].to_vec()
}

fn instruction(code: Code, bits: Bits, random: &mut Random, ip: u64) -> Option<Vec<u8>> {
    let mut insn = forms::operands(code, bits, random)?;
    if insn.is_stack_instruction() || insn.is_string_instruction() || insn.is_vsib() || is_unsuitable(&insn) {
        return None;
    }
    if (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory) {
        let offset = (random.below(WINDOW_LEN as u64) as i64 - WINDOW_LEN as i64 / 2) & !63;
        insn.set_memory_base(base(bits));
        insn.set_memory_displ_size(1);
        insn.set_memory_displacement64(offset as u64);
        insn.set_has_lock_prefix(
            insn.op_code().can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && random.percent(20),
        );
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&insn);
    let writes_base = info.used_registers().iter().any(|used| {
        used.register().full_register() == base(bits).full_register()
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
    });
    if writes_base {
        return None;
    }
    let mut encoder = Encoder::new(bits as u32);
    encoder.encode(&insn, ip).ok()?;
    Some(encoder.take_buffer())
}

/// Instructions that nearly always fault, whose address is not of our choice, or that store the selectors
/// of the last x87 instruction, which the engine does not keep.
fn is_unsuitable(insn: &Instruction) -> bool {
    use Mnemonic::*;
    (0..insn.op_count()).any(|op| {
        matches!(insn.op_kind(op), OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI)
            || insn.memory_displ_size() == 8
    }) || matches!(insn.mnemonic(), Div | Idiv | Xlatb | Bt | Bts | Btr | Btc | Std | Fnstenv | Fnsave)
}
