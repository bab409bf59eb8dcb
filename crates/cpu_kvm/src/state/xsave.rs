//! The XSAVE area: the kernel's is in the standard format (SDM vol. 1, §13.4) already. It may hold more parts
//! than guests of this project can have, and bytes that are nobody's state.

use kvm_bindings::kvm_xsave;
use x86::reg::xcr0;

const MXCSR_MASK: usize = 28;
/// After the registers of the legacy region come bytes for software's use.
const UNUSED: std::ops::Range<usize> = 416..512;
const HEADER: usize = 512;
const HEADER_LEN: usize = 64;
/// Legacy region, header, upper halves of the YMM registers.
const SIZE: usize = 832;
const AREA: usize = 4096;
/// MXCSR bits of every processor that can be a host.
const MXCSR_KNOWN: u32 = 0xffff;
const PARTS: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;

pub(super) fn from_kernel(region: &[u32]) -> Vec<u8> {
    let mut area: Vec<u8> = region.iter().flat_map(|word| word.to_le_bytes()).take(SIZE).collect();
    area[MXCSR_MASK..MXCSR_MASK + 4].copy_from_slice(&MXCSR_KNOWN.to_le_bytes());
    area[UNUSED].fill(0);
    let in_use = word(&area, HEADER) & PARTS;
    area[HEADER..HEADER + HEADER_LEN].fill(0);
    area[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
    area
}

/// # Errors
/// A sentence that says what is wrong.
pub(super) fn for_kernel(area: &[u8]) -> Result<kvm_xsave, String> {
    if area.len() < HEADER + HEADER_LEN || area.len() > AREA || !area.len().is_multiple_of(4) {
        return Err(format!("the XSAVE area has {} bytes", area.len()));
    }
    let in_use = word(area, HEADER);
    if in_use & !PARTS != 0 || word(area, HEADER + 8) != 0 {
        return Err(format!("the XSAVE area holds unknown parts ({in_use:#x}) or is compacted"));
    }
    if in_use & xcr0::AVX != 0 && area.len() < SIZE {
        return Err("the XSAVE area ends inside its AVX part".into());
    }
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(xsave)
}

fn word(area: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(area[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_parts_are_saved_and_come_back() {
        let mut region = vec![0x0101_0101u32; 1024];
        (region[HEADER / 4], region[HEADER / 4 + 1]) = (0x207, 0);
        let area = from_kernel(&region);
        assert_eq!((area.len(), word(&area, HEADER)), (SIZE, 7));
        assert!(area[UNUSED].iter().all(|byte| *byte == 0) && area[160] == 1 && area[831] == 1);
        assert_eq!(from_kernel(&for_kernel(&area).unwrap().region), area);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = from_kernel(&[0; 1024]);
        let with = |at: usize, value: u8| {
            let mut area = good.clone();
            area[at] = value;
            for_kernel(&area).is_err()
        };
        assert!(for_kernel(&good).is_ok() && for_kernel(&good[..576]).is_ok());
        assert!(for_kernel(&good[..572]).is_err() && for_kernel(&[0; 4100]).is_err());
        assert!(with(HEADER, 8) && with(HEADER + 15, 0x80));
        let mut avx = good[..800].to_vec();
        avx[HEADER] = 4;
        assert!(for_kernel(&avx).is_err());
    }
}
