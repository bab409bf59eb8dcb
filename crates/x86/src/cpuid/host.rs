//! CPUID of the processor that this runs on, or of one that is described.

use super::features::{Feature, Vendor};
use super::{Leaf, Register};
use std::arch::x86_64::{__cpuid_count, _xgetbv};

/// What a host's processor says of itself. Pure data, so that models can be built for any host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCpuid {
    /// The leaves that models look at; what is not in here counts as zero.
    pub leaves: Vec<Leaf>,
    /// XCR0: which extended state the host's operating system has enabled.
    pub xcr0: u64,
}

impl HostCpuid {
    /// Asks the processor.
    pub fn read() -> HostCpuid {
        let mut leaves = Vec::new();
        let mut ask = |function: u32, index: Option<u32>| {
            let found = __cpuid_count(function, index.unwrap_or(0));
            leaves.push(Leaf {
                function,
                index,
                eax: found.eax,
                ebx: found.ebx,
                ecx: found.ecx,
                edx: found.edx,
            });
            found
        };
        let basic = ask(0, None).eax;
        let osxsave = ask(1, None).ecx & 1 << 27 != 0;
        if basic >= 7 && ask(7, Some(0)).eax >= 1 {
            ask(7, Some(1));
        }
        if basic >= 0xd {
            ask(0xd, Some(0));
            ask(0xd, Some(1));
        }
        let extended = ask(0x8000_0000, None).eax;
        for function in 0x8000_0001..=extended.clamp(0x8000_0000, 0x8000_0004) {
            ask(function, None);
        }
        if extended >= 0x8000_0008 {
            ask(0x8000_0008, None);
        }
        // SAFETY: OSXSAVE says that XGETBV can be executed.
        let xcr0 = if osxsave { unsafe { _xgetbv(0) } } else { 0 };
        HostCpuid { leaves, xcr0 }
    }

    /// A host that has only those features that are in `offered`, too.
    pub(super) fn limited_to(&self, offered: &[Leaf]) -> HostCpuid {
        let mut host = self.clone();
        // Only its features: it keeps its vendor, family and names.
        super::limit(&mut host.leaves, offered);
        host
    }

    /// One leaf; zeroes when the host does not have it.
    pub(super) fn leaf(&self, function: u32, index: u32) -> Leaf {
        let same = |leaf: &&Leaf| leaf.function == function && leaf.index.unwrap_or(0) == index;
        let none = Leaf { function, index: None, eax: 0, ebx: 0, ecx: 0, edx: 0 };
        self.leaves.iter().find(same).copied().unwrap_or(none)
    }

    /// Whether a guest can be given a feature, which the host then executes for it.
    pub(super) fn has(&self, feature: &Feature) -> bool {
        const AVX_STATE: u64 = crate::reg::xcr0::SSE | crate::reg::xcr0::AVX;
        let present =
            self.leaf(feature.function, feature.index).register(feature.register) >> feature.bit & 1;
        let xsave = feature.name != "xsave" || self.xcr0 != 0;
        present != 0 && xsave && (!feature.needs_avx_state() || self.xcr0 & AVX_STATE == AVX_STATE)
    }

    /// The twelve letters of the vendor, as EBX, EDX and ECX of leaf 0 have them.
    pub(super) fn vendor_registers(&self) -> (u32, u32, u32) {
        let leaf = self.leaf(0, 0);
        (leaf.ebx, leaf.edx, leaf.ecx)
    }

    pub(super) fn vendor(&self) -> Vendor {
        let (ebx, edx, ecx) = self.vendor_registers();
        let name = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
        match &name[..] {
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }

    /// Family, model and stepping: EAX of leaf 1.
    pub(super) fn signature(&self) -> u32 {
        self.leaf(1, 0).register(Register::Eax)
    }

    /// The 48 bytes of the brand string, if there is one.
    pub(super) fn brand(&self) -> Option<[u8; 48]> {
        let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|function| self.leaf(function, 0));
        let registers = leaves.map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes));
        let bytes = registers.as_flattened().as_flattened();
        bytes.try_into().ok().filter(|bytes: &[u8; 48]| bytes[0] != 0)
    }
}
