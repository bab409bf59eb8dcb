//! Which status flags matter after each instruction.

use iced_x86::{Instruction, Mnemonic as M, OpKind, RflagsBits};

/// All six status flags, as `RflagsBits`.
pub(crate) const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
const _: () = assert!(ALL <= u8::MAX as u32);

/// The flags that `insn` certainly sets.
pub(crate) fn overwritten(insn: &Instruction) -> u32 {
    // A repeated instruction may execute no iteration. The prefix means nothing to others (SDM volume 2, §2.1.1).
    if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
        return 0;
    }
    match insn.mnemonic() {
        // A count of zero leaves all flags alone.
        mnemonic if is_shift(mnemonic) => {
            let count = insn.op_count() - 1;
            let fixed = insn.op_kind(count) != OpKind::Register && insn.immediate(count) & 0x1f != 0;
            if fixed { insn.rflags_modified() & ALL } else { 0 }
        }
        _ => insn.rflags_modified() & ALL,
    }
}

/// Whether an instruction has a count on which depends what it does to flags.
pub(super) fn is_shift(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}
