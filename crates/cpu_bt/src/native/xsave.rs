//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR (SDM vol. 1, chapter 13), with the components x87, SSE and AVX.

use super::float::MXCSR_MASK;
use super::state::{FX_XMM, legacy_region, load_x87_part, load_xmm_part, vector_count};
use super::x87::{self, image};
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::{RAX, RDX};
use iced_x86::{Instruction, Mnemonic};
use x86::reg::xcr0::{AVX, SSE, X87};
use x86::reg::{cr0, cr4};

/// The legacy region.
const LEGACY_LEN: usize = 512;
/// The header after it.
const HEADER_LEN: usize = 64;
/// Where the upper halves of the YMM registers are: in the standard format, and in the compacted one
/// too, for no component can come before them.
const AVX_AT: usize = LEGACY_LEN + HEADER_LEN;
const AVX_LEN: usize = 256;
/// In the header: which components are not in their initial state; the compacted format.
const XSTATE_BV: usize = LEGACY_LEN;
const XCOMP_BV: usize = LEGACY_LEN + 8;
const COMPACTED: u64 = 1 << 63;
/// MXCSR and its mask.
const MXCSR_AT: usize = 24;
const MXCSR_INITIAL: u32 = 0x1f80;
/// The operand must be a multiple of this.
const ALIGNMENT: u64 = 64;

/// The handler of such an instruction.
pub(super) fn handler(insn: &Instruction) -> Option<Handler> {
    use Mnemonic::*;
    Some(match insn.mnemonic() {
        Xsave => save::<STANDARD, false>,
        Xsave64 => save::<STANDARD, true>,
        Xsaveopt => save::<OPTIMIZED, false>,
        Xsaveopt64 => save::<OPTIMIZED, true>,
        Xsavec => save::<COMPACT, false>,
        Xsavec64 => save::<COMPACT, true>,
        Xrstor => restore::<false>,
        Xrstor64 => restore::<true>,
        _ => return None,
    })
}

/// Ways to save: XSAVE writes all that is asked for; XSAVEOPT leaves out what is in its initial state;
/// XSAVEC too, and uses the compacted format.
const STANDARD: u8 = 0;
const OPTIMIZED: u8 = 1;
const COMPACT: u8 = 2;

/// Checks, and the operand's address and the components asked for.
fn operand(cpu: &mut Cpu, op: &Op, write: bool) -> Result<(u64, u64)> {
    if cpu.sys.cr4 & cr4::OSXSAVE == 0 {
        return Err(Fault::UNDEFINED);
    }
    if cpu.sys.cr0 & cr0::TS != 0 {
        return Err(Fault::NO_FPU);
    }
    let linear = op.linear(cpu, LEGACY_LEN + HEADER_LEN, write)?;
    if !linear.is_multiple_of(ALIGNMENT) {
        return Err(Fault::GP0);
    }
    let asked = cpu.regs.r[RAX] & 0xffff_ffff | cpu.regs.r[RDX] << 32;
    Ok((linear, asked & cpu.sys.xcr0))
}

/// The components that are not in their initial state (XINUSE).
fn in_use(cpu: &Cpu) -> u64 {
    let regs = &cpu.regs;
    let vectors = &regs.ymm[..vector_count(cpu)];
    // For the first two it is enough to say that they are, as many processors do.
    let mut components = X87 | SSE;
    if vectors.iter().any(|register| register[2..] != [0; 2]) {
        components |= AVX;
    }
    components
}

fn save<const WAY: u8, const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (linear, asked) = operand(cpu, op, true)?;
    let mut used = in_use(cpu);
    if WAY == COMPACT && cpu.regs.mxcsr != MXCSR_INITIAL {
        // The compacted format counts MXCSR as part of SSE (§13.10).
        used |= SSE;
    }
    let written = if WAY == STANDARD { asked } else { asked & used };
    // Everything is checked before anything is written.
    cpu.check_write(linear, LEGACY_LEN + HEADER_LEN)?;
    if written & AVX != 0 {
        cpu.check_write(linear.wrapping_add(AVX_AT as u64), AVX_LEN)?;
    }
    let legacy = legacy_region(cpu, WIDE);
    let put = |cpu: &mut Cpu, at: usize, bytes: &[u8]| cpu.write_bytes(linear.wrapping_add(at as u64), bytes);
    if written & X87 != 0 {
        put(cpu, 0, &legacy[..MXCSR_AT])?;
        put(cpu, image::REGISTERS, &legacy[image::REGISTERS..FX_XMM])?;
    }
    // MXCSR goes with SSE and, in the standard format, with AVX (§13.7, §13.10).
    if (if WAY == COMPACT { written & SSE } else { asked & (SSE | AVX) }) != 0 {
        put(cpu, MXCSR_AT, &legacy[MXCSR_AT..image::REGISTERS])?;
    }
    if written & SSE != 0 {
        put(cpu, FX_XMM, &legacy[FX_XMM..FX_XMM + 16 * vector_count(cpu)])?;
    }
    if written & AVX != 0 {
        let mut upper = [0; AVX_LEN];
        let count = vector_count(cpu);
        for (into, register) in upper.chunks_exact_mut(16).zip(&cpu.regs.ymm[..count]) {
            into[..8].copy_from_slice(&register[2].to_le_bytes());
            into[8..].copy_from_slice(&register[3].to_le_bytes());
        }
        put(cpu, AVX_AT, &upper[..16 * count])?;
    }
    let header = linear.wrapping_add(XSTATE_BV as u64);
    if WAY == COMPACT {
        cpu.write::<u64>(header, asked & used)?;
        cpu.write::<u64>(linear.wrapping_add(XCOMP_BV as u64), COMPACTED | asked)?;
    } else {
        let old = cpu.read::<u64>(header)?;
        cpu.write(header, old & !asked | used & asked)?;
    }
    Ok(Flow::Next)
}

fn restore<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (linear, asked) = operand(cpu, op, false)?;
    let mut area = [0; LEGACY_LEN + HEADER_LEN];
    // The header first: if it is bad, that counts, not a missing page.
    cpu.read_bytes(linear.wrapping_add(XSTATE_BV as u64), &mut area[XSTATE_BV..])?;
    let field = |area: &[u8], at: usize| u64::from_le_bytes(area[at..at + 8].try_into().expect("8 bytes"));
    let (present, format) = (field(&area, XSTATE_BV), field(&area, XCOMP_BV));
    let compacted = format & COMPACTED != 0;
    // §13.8.1 and §13.8.2.
    let xcr0 = cpu.sys.xcr0;
    let bad = match compacted {
        false => present & !xcr0 != 0 || area[XCOMP_BV..XCOMP_BV + 16].iter().any(|byte| *byte != 0),
        true => {
            format & !COMPACTED & !xcr0 != 0
                || present & !format != 0
                || area[XCOMP_BV + 8..].iter().any(|byte| *byte != 0)
        }
    };
    if bad {
        return Err(Fault::GP0);
    }
    let asked_mxcsr = if compacted { asked & SSE } else { asked & (SSE | AVX) };
    if asked & present & (X87 | SSE) != 0 || asked_mxcsr != 0 {
        cpu.read_bytes(linear, &mut area[..LEGACY_LEN])?;
    }
    let mut upper = [0; AVX_LEN];
    if asked & present & AVX != 0 {
        let len = 16 * vector_count(cpu);
        cpu.read_bytes(linear.wrapping_add(AVX_AT as u64), &mut upper[..len])?;
    }
    // The standard format loads MXCSR whatever XSTATE_BV says; the compacted one initialises it with SSE.
    let mut mxcsr = cpu.regs.mxcsr;
    if asked_mxcsr != 0 {
        mxcsr = match compacted && present & SSE == 0 {
            true => MXCSR_INITIAL,
            false => u32::from_le_bytes(area[MXCSR_AT..MXCSR_AT + 4].try_into().expect("4 bytes")),
        };
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::GP0);
        }
    }
    cpu.regs.mxcsr = mxcsr;
    let legacy: &mut [u8; LEGACY_LEN] = (&mut area[..LEGACY_LEN]).try_into().expect("512 bytes");
    if asked & X87 != 0 {
        match present & X87 {
            0 => x87::reset(&mut cpu.regs),
            _ => load_x87_part(&mut cpu.regs, legacy, WIDE),
        }
    }
    if asked & SSE != 0 {
        if present & SSE == 0 {
            legacy[FX_XMM..].fill(0);
        }
        load_xmm_part(cpu, legacy);
    }
    if asked & AVX != 0 {
        let count = vector_count(cpu);
        for (register, from) in cpu.regs.ymm[..count].iter_mut().zip(upper.chunks_exact(16)) {
            register[2] = u64::from_le_bytes(from[..8].try_into().expect("8 bytes"));
            register[3] = u64::from_le_bytes(from[8..].try_into().expect("8 bytes"));
        }
    }
    Ok(Flow::Next)
}
