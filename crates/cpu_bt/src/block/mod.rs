//! Decoded code: [`Op`], one instruction in the form that executes fast, and [`Block`], a run of them.
//!
//! A block starts at some physical address and holds instructions that follow each other, up to a
//! branch, the end of its page, or an instruction after which anything may have changed. It depends on
//! its bytes and its [`BlockKey`](crate::cpu::BlockKey) only, never on the linear address it runs at, so
//! it survives process switches.

pub(crate) mod arena;
pub(crate) mod cache;
pub(crate) mod decode;

use crate::cpu::Cpu;
use crate::fault::Result;
use crate::native::Stub;
use iced_x86::Instruction;
use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

/// Executes one instruction. Before it is called [`RIP`](crate::regs::RIP) is the address of the next
/// instruction. An exception must leave everything as it was before (RIP is put back by the caller).
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Result<Flow>;

/// What follows an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next one in the block, or, after the last, whatever RIP says.
    Next,
    /// Whatever RIP says now.
    Branch,
}

/// One decoded instruction.
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// Immediate operand, extended to 64 bits; for near branches the distance from the next instruction.
    pub(crate) imm: u64,
    /// Displacement of the memory operand (from the next instruction if `base` is RIP).
    pub(crate) disp: u64,
    /// Details for handlers that need more than the fields above.
    pub(crate) detail: Option<Rc<Detail>>,
    /// Distance from the start of the block.
    pub(crate) offset: u16,
    /// Length in bytes.
    pub(crate) len: u8,
    /// First register operand: a general register (perhaps with [`HIGH`](crate::regs::HIGH)).
    pub(crate) dst: u8,
    /// Second register operand.
    pub(crate) src: u8,
    /// Base register of the memory operand, or RIP, or ZERO.
    pub(crate) base: u8,
    /// Index register of the memory operand, or ZERO.
    pub(crate) index: u8,
    /// The index is shifted left by this.
    pub(crate) scale: u8,
    /// Segment register of the memory operand; FLAT in 64-bit mode unless it is FS or GS (or SS, so that
    /// faults are of the right kind).
    pub(crate) segment: u8,
    /// 64 minus the address size in bits: how far to shift an offset left and right to cut it.
    pub(crate) address_cut: u8,
    /// The block ends after this instruction.
    pub(crate) ends_block: bool,
}

/// What rare handlers want to know.
pub(crate) struct Detail {
    /// The instruction as decoded, with RIP-relative addresses as if it stood at 0. Of one that executes natively,
    /// without the address of its memory operand, for equal ones share this.
    pub(crate) insn: Instruction,
    /// Host code for the instruction, if it executes natively.
    pub(crate) stub: Option<Stub>,
}

impl Op {
    /// The offset of the memory operand in its segment.
    #[inline(always)]
    pub(crate) fn address(&self, cpu: &Cpu) -> u64 {
        let r = &cpu.regs.r;
        debug_assert!((self.base as usize) < r.len() && (self.index as usize) < r.len());
        // SAFETY: the decoder puts only register numbers, RIP and ZERO here.
        let (base, index) =
            unsafe { (*r.get_unchecked(self.base as usize), *r.get_unchecked(self.index as usize)) };
        let sum = base.wrapping_add(index << self.scale).wrapping_add(self.disp);
        sum << self.address_cut >> self.address_cut
    }

    /// The linear address of the memory operand, checked for reading (or writing) `len` bytes.
    #[inline(always)]
    pub(crate) fn linear(&self, cpu: &mut Cpu, len: usize, write: bool) -> Result<u64> {
        let offset = self.address(cpu);
        cpu.linear(self.segment, offset, len, write)
    }

    /// The instruction as decoded.
    pub(crate) fn insn(&self) -> &Instruction {
        &self.detail.as_ref().expect("ops of system and native handlers carry their instruction").insn
    }
}

/// Instructions that execute one after the other. Lies in an [arena], with its instructions and bytes behind it; what is
/// asked for at each look-up lies in one line of the processor's caches.
#[repr(C, align(64))]
pub(crate) struct Block {
    /// Guest-physical address of the first byte.
    pub(crate) gpa: u64,
    /// How often it was looked up for translation; [`UNTRANSLATABLE`] when that failed, [`TRANSLATED`] when it
    /// succeeded.
    pub(crate) hits: Cell<u32>,
    op_count: u16,
    byte_count: u16,
    /// Versions of the page (and second page) when it was decoded: it is valid while they stay.
    pub(crate) versions: Cell<[u32; 2]>,
    /// For an instruction that crosses a page: the physical address of the second page.
    pub(crate) second_page: Option<u64>,
    ops: NonNull<Op>,
    chunk: NonNull<arena::Chunk>,
}

const _: () = assert!(size_of::<Block>() == 64 && align_of::<Op>() <= 64);

/// Value of [`Block::hits`] for blocks whose first instruction is not translated.
pub(crate) const UNTRANSLATABLE: u32 = u32::MAX;
/// And for those that there was translated code for when it was last looked for.
pub(crate) const TRANSLATED: u32 = u32::MAX - 1;
