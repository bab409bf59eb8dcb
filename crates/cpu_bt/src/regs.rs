//! The guest's register file, laid out for generated code: fixed offsets, no hidden fields.

use crate::int::Int;
use x86::Segment;
use x86::reg::rflags;

/// Index into [`Regs::r`] of the instruction pointer. While an instruction executes it holds the
/// address of the *next* one, which is what RIP-relative operands and calls need.
pub(crate) const RIP: usize = 16;
/// Index into [`Regs::r`] of a slot that is always zero: "no base" and "no index" of an address.
pub(crate) const ZERO: usize = 17;
/// Index into [`Regs::seg`] of a segment whose base is always zero: the flat segments of long mode.
pub(crate) const FLAT: usize = 6;
/// Marks AH, CH, DH and BH among register numbers: `HIGH | 0..=3`.
pub(crate) const HIGH: u8 = 0x80;

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// Registers that ordinary instructions touch.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct Regs {
    /// YMM0 to YMM15, whole; XMM registers are their low halves.
    pub(crate) ymm: [[u64; 4]; 16],
    /// FXSAVE64 image (SDM vol. 1, table 10-2) of which the x87 part is in use; its XMM and MXCSR fields
    /// are filled only while an image is built.
    pub(crate) fx: [u8; 512],
    /// RAX to R15 in encoding order, then [`RIP`] and [`ZERO`].
    pub(crate) r: [u64; 18],
    /// RFLAGS, always up to date.
    pub(crate) rflags: u64,
    /// MXCSR.
    pub(crate) mxcsr: u32,
    /// ES, CS, SS, DS, FS, GS, then [`FLAT`].
    pub(crate) seg: [Segment; 7],
}

impl Regs {
    pub(crate) fn new() -> Regs {
        let mut regs = Regs {
            ymm: [[0; 4]; 16],
            fx: [0; 512],
            r: [0; 18],
            rflags: rflags::FIXED,
            mxcsr: 0x1f80,
            seg: [Segment::default(); 7],
        };
        // FNINIT's control word, with an empty tag word (abridged: 0).
        regs.fx[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
        regs
    }

    /// Reads a general register of `T`'s size; byte registers may carry [`HIGH`].
    #[inline(always)]
    pub(crate) fn get<T: Int>(&self, index: u8) -> T {
        let (index, high) = ((index & 0x1f) as usize, (index >> 7) as u32);
        T::from_u64(self.r[index] >> (8 * high))
    }

    /// Writes a general register of `T`'s size: 32-bit writes clear the upper half, smaller ones keep it.
    #[inline(always)]
    pub(crate) fn set<T: Int>(&mut self, index: u8, value: T) {
        let (at, high) = ((index & 0x1f) as usize, (index >> 7) as u32);
        let value = value.to_u64();
        self.r[at] = match T::BYTES {
            8 | 4 => value,
            2 => self.r[at] & !0xffff | value,
            _ => self.r[at] & !(0xff << (8 * high)) | value << (8 * high),
        };
    }

    /// Replaces the status flags selected by `mask`, from `flags` as `LAHF; SETO AL` leave them in AX.
    #[inline(always)]
    pub(crate) fn set_status(&mut self, ax: u16, mask: u64) {
        let flags = (ax as u64) >> 8 & 0xd5 | (ax as u64 & 1) << 11;
        self.rflags = self.rflags & !mask | flags & mask;
    }

    /// Whether all of the given RFLAGS bits are set.
    #[inline(always)]
    pub(crate) fn flag(&self, bits: u64) -> bool {
        self.rflags & bits == bits
    }
}
