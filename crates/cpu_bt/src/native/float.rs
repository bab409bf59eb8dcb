//! SIMD floating-point exceptions (SDM vol. 1, §11.5).
//!
//! The host executes with everything masked, so it never faults. The flags that it leaves say which
//! exceptions occurred; an unmasked one among them means that the guest sees #XM and no result.

use super::Stub;
use super::build::IMAGE_MXCSR;
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::Regs;
use x86::Vector;
use x86::reg::cr4;

/// Exception flags.
const FLAGS: u32 = 0x3f;
/// Exception masks.
const MASKS: u32 = FLAGS << MASK_SHIFT;
const MASK_SHIFT: u32 = 7;
/// Invalid operation, denormal operand, division by zero: found before the result is computed.
const BEFORE: u32 = 0x07;
const UNDERFLOW: u32 = 1 << 4;
const FLUSH_TO_ZERO: u32 = 1 << 15;
/// Bits that may be set: all but the upper half.
pub(super) const MXCSR_MASK: u32 = 0xffff;

/// Whether any exception is unmasked.
#[inline(always)]
pub(super) fn any_unmasked(mxcsr: u32) -> bool {
    mxcsr & MASKS != MASKS
}

/// MXCSR for the host function: the guest's, with everything masked and no flag set.
pub(super) fn set_image_mxcsr(regs: &mut Regs, value: u32) {
    // Reserved bits are refused wherever MXCSR is loaded; on the host they would fault.
    regs.fx[IMAGE_MXCSR..IMAGE_MXCSR + 4].copy_from_slice(&(value & MXCSR_MASK).to_le_bytes());
}

fn image_flags(regs: &Regs) -> u32 {
    let bytes = regs.fx[IMAGE_MXCSR..IMAGE_MXCSR + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes) & FLAGS
}

/// Calls a host function that uses MXCSR.
#[inline(always)]
pub(super) fn invoke(cpu: &mut Cpu, stub: &Stub, memory: *mut u8) -> Result<()> {
    let mxcsr = cpu.regs.mxcsr;
    if any_unmasked(mxcsr) {
        return invoke_carefully(cpu, stub, memory);
    }
    set_image_mxcsr(&mut cpu.regs, mxcsr & !FLAGS);
    stub.call(&mut cpu.regs, memory);
    cpu.regs.mxcsr = mxcsr | image_flags(&cpu.regs);
    Ok(())
}

/// What a host function may change.
struct Before {
    ymm: [[u64; 4]; 16],
    fx: [u8; 512],
    r: [u64; 18],
    rflags: u64,
}

impl Before {
    fn save(regs: &Regs) -> Before {
        Before { ymm: regs.ymm, fx: regs.fx, r: regs.r, rflags: regs.rflags }
    }

    fn restore(&self, regs: &mut Regs) {
        (regs.ymm, regs.fx, regs.r, regs.rflags) = (self.ymm, self.fx, self.r, self.rflags);
    }
}

#[cold]
fn invoke_carefully(cpu: &mut Cpu, stub: &Stub, memory: *mut u8) -> Result<()> {
    let mxcsr = cpu.regs.mxcsr;
    let unmasked = !(mxcsr >> MASK_SHIFT) & FLAGS;
    let mut control = mxcsr & !FLAGS | MASKS;
    let before = Before::save(&cpu.regs);
    let mut underflow = 0;
    if unmasked & UNDERFLOW != 0 {
        // Unmasked, underflow means a tiny result; masked, a tiny and inexact one. Flushing to zero,
        // which itself works only while underflow is masked, reports every tiny result.
        set_image_mxcsr(&mut cpu.regs, control | FLUSH_TO_ZERO);
        stub.call(&mut cpu.regs, memory);
        underflow = image_flags(&cpu.regs) & UNDERFLOW;
        before.restore(&mut cpu.regs);
        control &= !FLUSH_TO_ZERO;
    }
    set_image_mxcsr(&mut cpu.regs, control);
    stub.call(&mut cpu.regs, memory);
    let mut flags = image_flags(&cpu.regs) | underflow;
    if flags & unmasked & BEFORE != 0 {
        flags &= BEFORE;
    }
    cpu.regs.mxcsr = mxcsr | flags;
    if flags & unmasked == 0 {
        return Ok(());
    }
    before.restore(&mut cpu.regs);
    match cpu.sys.cr4 & cr4::OSXMMEXCPT {
        0 => Err(Fault::UNDEFINED),
        _ => Err(Fault::new(Vector::SimdFloatingPoint)),
    }
}
