//! Sequences of instructions without branches, stack or string operations, all of whose memory operands
//! are in the data.

use crate::case::{Bits, CODE, CODE_LEN_MAX, Case, DATA, DATA_LEN, Until, WINDOW_LEN};
use crate::random::Random;
use crate::{forms, inputs};
use iced_x86::{Code, Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use std::sync::OnceLock;

/// Points at the middle of the data and is never written.
const BASE: Register = Register::R15;
/// Room for the longest instruction and the jump that the host appends.
const ROOM: usize = 32;

/// Makes a sequence of 10 to 30 of the given opcodes.
pub(crate) fn case(codes: &[Code], random: &mut Random) -> Case {
    let mut case = Case {
        bits: Bits::B64,
        until: Until::End,
        state: inputs::state(random),
        code: [0; CODE_LEN_MAX],
        code_len: 0,
        window_at: (DATA_LEN / 2 - WINDOW_LEN / 2) as u32,
        window: [0; WINDOW_LEN],
    };
    forms::fill_window(random, &mut case.window);
    case.state.gpr[15] = DATA + DATA_LEN as u64 / 2;
    let wanted = 10 + random.below(21);
    let mut len = 0;
    let mut made = 0;
    while made < wanted && len + ROOM < CODE_LEN_MAX {
        let Some(bytes) = instruction(random.pick(codes), random, CODE + len as u64) else { continue };
        case.code[len..len + bytes.len()].copy_from_slice(&bytes);
        len += bytes.len();
        made += 1;
    }
    case.code_len = len as u32;
    case
}

/// The code of a sequence of instructions of all kinds, for the data at [`DATA`] if R15 points there.
pub(crate) fn mixed(random: &mut Random) -> Vec<u8> {
    static CODES: OnceLock<Vec<Code>> = OnceLock::new();
    let codes = CODES.get_or_init(|| forms::codes(Bits::B64).collect());
    let case = case(codes, random);
    case.code[..case.code_len as usize].to_vec()
}

fn instruction(code: Code, random: &mut Random, ip: u64) -> Option<Vec<u8>> {
    let mut insn = forms::operands(code, Bits::B64, random)?;
    if insn.is_stack_instruction() || insn.is_string_instruction() || insn.is_vsib() || is_unsuitable(&insn) {
        return None;
    }
    if (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Memory) {
        let offset = (random.below(WINDOW_LEN as u64) as i64 - WINDOW_LEN as i64 / 2) & !63;
        insn.set_memory_base(BASE);
        insn.set_memory_displ_size(1);
        insn.set_memory_displacement64(offset as u64);
        insn.set_has_lock_prefix(
            insn.op_code().can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && random.percent(20),
        );
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&insn);
    let writes_base = info.used_registers().iter().any(|used| {
        used.register().full_register() == BASE
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
    });
    if writes_base {
        return None;
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, ip).ok()?;
    Some(encoder.take_buffer())
}

/// Instructions that nearly always fault, whose address is not of our choice, or that store the selectors
/// of the last x87 instruction, which the engine does not keep.
fn is_unsuitable(insn: &Instruction) -> bool {
    use Mnemonic::*;
    (0..insn.op_count())
        .any(|op| matches!(insn.op_kind(op), OpKind::MemorySegRDI) || insn.memory_displ_size() == 8)
        || matches!(insn.mnemonic(), Div | Idiv | Xlatb | Bt | Bts | Btr | Btc | Std | Fnstenv | Fnsave)
}
