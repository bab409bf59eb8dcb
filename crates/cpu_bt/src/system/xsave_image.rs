//! The XSAVE area of a saved state, in the standard format (SDM vol. 1, §13.4): legacy region, header,
//! upper halves of the YMM registers.

use crate::regs::Regs;
use x86::reg::xcr0;

const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;
/// Size of the area.
pub(super) const SIZE: usize = YMM_HIGH + 16 * 16;
/// MXCSR bits that exist: all but 16 to 31 (every processor with AVX has denormals-are-zero).
const MXCSR_KNOWN: u32 = 0xffff;

/// Builds the area from the registers.
pub(super) fn build(regs: &Regs) -> Vec<u8> {
    let mut area = vec![0; SIZE];
    area[..512].copy_from_slice(&regs.fx);
    // The bytes beyond the registers are the system's to use; they are not part of the state.
    area[XMM..512].fill(0);
    area[MXCSR..MXCSR + 4].copy_from_slice(&regs.mxcsr.to_le_bytes());
    area[MXCSR_MASK..MXCSR_MASK + 4].copy_from_slice(&MXCSR_KNOWN.to_le_bytes());
    for (index, ymm) in regs.ymm.iter().enumerate() {
        for (part, value) in ymm.iter().enumerate() {
            let base = if part < 2 { XMM } else { YMM_HIGH };
            let at = base + index * 16 + part % 2 * 8;
            area[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    let in_use = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    area[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
    area
}

/// What an area holds: x87 part of an FXSAVE image, MXCSR, YMM registers.
pub(super) struct Parsed {
    pub(super) fx: [u8; 512],
    pub(super) mxcsr: u32,
    pub(super) ymm: [[u64; 4]; 16],
}

/// Takes an area apart. Parts that its header does not name have their initial value. It may lack the
/// YMM part.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn parse(area: &[u8]) -> Result<Parsed, String> {
    if area.len() < YMM_HIGH {
        return Err(format!("the XSAVE area has {} bytes instead of at least {YMM_HIGH}", area.len()));
    }
    let word = |at: usize| u64::from_le_bytes(area[at..at + 8].try_into().expect("eight bytes"));
    let in_use = word(HEADER);
    if in_use & !(xcr0::X87 | xcr0::SSE | xcr0::AVX) != 0 {
        return Err(format!("the XSAVE area holds unknown parts ({in_use:#x})"));
    }
    if word(HEADER + 8) != 0 {
        return Err("the XSAVE area is compacted".into());
    }
    let initial = Regs::new();
    let mut parsed = Parsed { fx: initial.fx, mxcsr: initial.mxcsr, ymm: initial.ymm };
    if in_use & xcr0::X87 != 0 {
        parsed.fx[..XMM].copy_from_slice(&area[..XMM]);
        parsed.fx[MXCSR..MXCSR + 8].fill(0);
    }
    if in_use & (xcr0::SSE | xcr0::AVX) != 0 {
        parsed.mxcsr = u32::from_le_bytes(area[MXCSR..MXCSR + 4].try_into().expect("four bytes"));
        if parsed.mxcsr & !MXCSR_KNOWN != 0 {
            return Err(format!("MXCSR cannot be {:#x}", parsed.mxcsr));
        }
    }
    for (index, ymm) in parsed.ymm.iter_mut().enumerate() {
        if in_use & xcr0::SSE != 0 {
            let at = XMM + index * 16;
            (ymm[0], ymm[1]) = (word(at), word(at + 8));
        }
        if in_use & xcr0::AVX != 0 {
            let at = YMM_HIGH + index * 16;
            if area.len() < at + 16 {
                return Err(format!("the XSAVE area ends after {} bytes, inside its AVX part", area.len()));
            }
            (ymm[2], ymm[3]) = (word(at), word(at + 8));
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_gives_back_the_registers() {
        let mut regs = Regs::new();
        for (index, ymm) in regs.ymm.iter_mut().enumerate() {
            *ymm = [1, 2, 3, 4].map(|part| part * 0x0101_0101_0101 + index as u64);
        }
        regs.mxcsr = 0x9fc0;
        regs.fx[32..42].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x80, 0xff, 0x3f]);
        let area = build(&regs);
        assert_eq!(area.len(), 832);
        let parsed = parse(&area).unwrap();
        assert_eq!(parsed.ymm, regs.ymm);
        assert_eq!((parsed.mxcsr, &parsed.fx[..24]), (0x9fc0, &regs.fx[..24]));
        assert_eq!(parsed.fx[32..160], regs.fx[32..160]);
    }

    #[test]
    fn parts_not_named_are_initial() {
        let mut regs = Regs::new();
        regs.ymm[3] = [7; 4];
        let mut area = build(&regs);
        area[HEADER] = 1;
        let parsed = parse(&area).unwrap();
        assert_eq!((parsed.ymm[3], parsed.mxcsr), ([0; 4], 0x1f80));
    }

    #[test]
    fn nonsense_is_refused() {
        let area = build(&Regs::new());
        let with = |at: usize, value: u8| {
            let mut changed = area.clone();
            changed[at] = value;
            parse(&changed).is_err()
        };
        assert!(parse(&area[..575]).is_err());
        assert!(parse(&area[..800]).is_err());
        assert!(with(HEADER, 0x0f) && with(HEADER + 15, 0x80) && with(MXCSR + 2, 1));
    }
}
