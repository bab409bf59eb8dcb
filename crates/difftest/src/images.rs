//! FXSAVE, XSAVE and their kin: saved, then changed, then restored.

use crate::case::{Bits, CODE, CODE_LEN_MAX, Case, DATA, Until, WINDOW_LEN};
use crate::inputs;
use crate::random::Random;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmRegister64, CodeAssembler, eax, edx, ptr, qword_ptr, r8, rdi, rsi, st0, st3, xmm1, xmm2, xmm3, ymm4,
    ymm5, ymm6,
};

/// Offset of the image in the data.
pub(crate) const IMAGE: usize = 0x400;
/// Offset of the header in it.
const HEADER: i32 = 512;
/// Bytes of an image that differ for good reasons, as offsets in the data: the pointers of the x87 unit
/// (AMD's processors save them only while an exception is pending), the mask of MXCSR, and what is
/// reserved.
pub(crate) const IGNORED: [(usize, usize); 3] =
    [(IMAGE + 6, IMAGE + 24), (IMAGE + 28, IMAGE + 32), (IMAGE + 416, IMAGE + 512)];

/// Makes a case: save, change registers, save or restore, with random components asked for.
pub(crate) fn case(random: &mut Random) -> Case {
    let mut state = inputs::state(random);
    // FXSAVE wants an alignment of 16, XSAVE of 64.
    let legacy = random.percent(25);
    state.gpr[7] = DATA + IMAGE as u64;
    if random.percent(3) {
        state.gpr[7] += 1 << random.below(if legacy { 4 } else { 6 });
    }
    // Some of it in its initial state.
    for register in &mut state.ymm {
        match random.below(3) {
            0 => *register = [0; 4],
            1 => register[2..].fill(0),
            _ => {}
        }
    }
    // Whether upper halves that were written and are zero count as in use is up to the processor.
    state.ymm[15][3] |= 1;
    let code = code(random, state.gpr[7], legacy).expect("code of valid instructions");
    let mut case = Case {
        bits: Bits::B64,
        until: Until::End,
        state,
        code: [0; CODE_LEN_MAX],
        code_len: code.len() as u32,
        // Where no image is.
        window_at: 0x1000,
        window: [0; WINDOW_LEN],
    };
    case.code[..code.len()].copy_from_slice(&code);
    case
}

fn code(random: &mut Random, at: u64, legacy: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let wide = random.percent(50);
    if legacy {
        if wide {
            a.fxsave64(ptr(rdi))?
        } else {
            a.fxsave(ptr(rdi))?
        }
        change(&mut a, random)?;
        if wide {
            a.fxrstor64(ptr(rdi))?
        } else {
            a.fxrstor(ptr(rdi))?
        }
        return a.assemble(CODE);
    }
    // The header as software prepares it, or spoilt.
    a.mov(rsi, if random.percent(10) { random.next() } else { 0 })?;
    a.mov(r8, 0u64)?;
    let spoilt = random.below(8) as i32;
    for field in 0..8 {
        let value: AsmRegister64 = if field == spoilt { rsi } else { r8 };
        a.mov(qword_ptr(at as i32 + HEADER + 8 * field), value)?;
    }
    ask(&mut a, random)?;
    match (random.below(3), wide) {
        (0, true) => a.xsave64(ptr(rdi))?,
        (0, false) => a.xsave(ptr(rdi))?,
        (1, true) => a.xsaveopt64(ptr(rdi))?,
        (1, false) => a.xsaveopt(ptr(rdi))?,
        (_, true) => a.xsavec64(ptr(rdi))?,
        (_, false) => a.xsavec(ptr(rdi))?,
    }
    change(&mut a, random)?;
    ask(&mut a, random)?;
    if wide {
        a.xrstor64(ptr(rdi))?
    } else {
        a.xrstor(ptr(rdi))?
    }
    a.assemble(CODE)
}

/// The components asked for: any of the three that every engine has.
fn ask(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    a.mov(eax, if random.percent(50) { 7u32 } else { random.below(8) as u32 })?;
    a.mov(edx, 0u32)
}

fn change(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    if random.percent(70) {
        a.paddd(xmm1, xmm2)?;
        a.pxor(xmm3, xmm3)?;
    }
    if random.percent(70) {
        a.vpaddd(ymm4, ymm5, ymm6)?;
    }
    if random.percent(50) {
        a.fnclex()?;
        a.fld1()?;
        a.fchs()?;
        a.fxch(st0, st3)?;
    }
    Ok(())
}
