//! Executing CPUID on a model's leaves.

use super::Leaf;
use crate::reg::xcr0;

/// What of a running processor CPUID shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// The APIC ID.
    pub apic_id: u32,
    /// Whether IA32_APIC_BASE enables the local APIC.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// Size of an XSAVE area that holds these parts of the state, in the standard and in the compacted
/// format, which are the same up to AVX (SDM vol. 1, §13.4).
pub fn xsave_area_size(xcr0: u64) -> u32 {
    512 + 64 + if xcr0 & xcr0::AVX != 0 { 256 } else { 0 }
}

/// A model's leaves for the vCPU with this APIC ID.
pub fn for_vcpu(leaves: &[Leaf], apic_id: u32) -> Vec<Leaf> {
    leaves.iter().map(|leaf| with_id(*leaf, apic_id)).collect()
}

/// Leaves that name the processor.
fn with_id(mut leaf: Leaf, apic_id: u32) -> Leaf {
    match leaf.function {
        1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | apic_id << 24,
        0xb | 0x1f => leaf.edx = apic_id,
        // Extended APIC ID, core.
        0x8000_001e => (leaf.eax, leaf.ebx) = (apic_id, leaf.ebx & !0xff | apic_id & 0xff),
        _ => {}
    }
    leaf
}

/// Executes CPUID with `function` in EAX and `index` in ECX. Leaves that the model does not have are
/// zero (as on AMD; Intel's processors answer with the data of their highest basic leaf, on which nobody
/// relies).
pub fn query(leaves: &[Leaf], function: u32, index: u32, running: &Running) -> Leaf {
    let same = |leaf: &&Leaf| leaf.function == function && leaf.index.is_none_or(|own| own == index);
    let mut leaf = match leaves.iter().find(same) {
        Some(leaf) => with_id(*leaf, running.apic_id),
        // Beyond the last level the topology leaf still names the level asked for and the processor.
        None if function == 0xb => {
            Leaf { function, index: Some(index), eax: 0, ebx: 0, ecx: index & 0xff, edx: running.apic_id }
        }
        None => Leaf { function, index: Some(index), eax: 0, ebx: 0, ecx: 0, edx: 0 },
    };
    const APIC: u32 = 1 << 9;
    const OSXSAVE: u32 = 1 << 27;
    match (function, index) {
        (1, _) => {
            leaf.ecx = leaf.ecx & !OSXSAVE | if running.osxsave { OSXSAVE } else { 0 };
            if !running.apic_enabled {
                leaf.edx &= !APIC;
            }
        }
        (0x8000_0001, _) if !running.apic_enabled => leaf.edx &= !APIC,
        (0xd, 0 | 1) if leaf.ebx != 0 => leaf.ebx = xsave_area_size(running.xcr0),
        _ => {}
    }
    leaf
}
