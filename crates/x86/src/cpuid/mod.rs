//! CPUID models: what a guest's processor says of itself, identical under every engine.
//!
//! [`build`] makes the leaves of a named model, or refuses with the list of what the host lacks:
//!
//! | model | contents |
//! |---|---|
//! | `x86-64-v1` | the baseline of the x86-64 psABI, and what system software gets everywhere |
//! | `x86-64-v2` | and SSE4.2, SSSE3, POPCNT, CMPXCHG16B, LAHF |
//! | `x86-64-v3` | and AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE, XSAVE |
//! | `host` | all that the host has, of what engines can give |
//! | `default`, `max` | the newest of the numbered ones that the host can give |
//!
//! From `v2` on, cryptographic and random-number instructions are in a model when the host has them:
//! they are worth too much to be left out. Between hosts compare leaves with [`missing`].
//!
//! The vendor, family, model and stepping are the host's, because guests choose workarounds by them. The
//! processor claims to be free of the weaknesses that speculative execution has (`*_NO` bits): guests
//! then leave out mitigations, which would cost time and protect nothing, since an engine isolates its
//! guest as a whole. All vCPUs are cores of one package.
//!
//! What changes while a processor runs, [`query`] fills in.

mod compare;
mod features;
mod host;
mod model;
mod query;
#[cfg(test)]
mod tests;
mod topology;

pub use compare::missing;
pub use features::{Feature, Register};
pub use host::HostCpuid;
pub use model::{
    ModelError, add_virtualization, build, build_for, build_within, limit, physical_address_bits,
};
pub use query::{Running, for_vcpu, query, xsave_area_size};

use serde::{Deserialize, Serialize};

/// One CPUID leaf as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input; `None` when the leaf ignores it.
    pub index: Option<u32>,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Width of guest-physical addresses in bits, in every model.
pub const PHYS_BITS: u32 = 46;

/// Width of linear addresses in bits, in every model.
pub const LINEAR_BITS: u32 = 48;

/// The value of IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2): not affected by RDCL (bit 0), L1TF at VM
/// entry (3), SSB (4), MDS (5), the page-size change machine check (6), TAA (8), SBDR/SSDP, FBSDP and
/// PSDP (13 to 15), BHI (20), PBRSB (24), GDS (26), RFDS (27) and ITS (62); and IBRS, once set, stays in
/// force (1), so that no retpolines are needed.
pub const ARCH_CAPABILITIES: u64 = {
    1 << 0
        | 1 << 1
        | 1 << 3
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 8
        | 1 << 13
        | 1 << 14
        | 1 << 15
        | 1 << 20
        | 1 << 24
        | 1 << 26
        | 1 << 27
        | 1 << 62
};

/// The microcode revision that an AMD processor of this signature (EAX of leaf 1) has in every model: of
/// its own numbering (extended family, extended model, model and stepping, then the patch), and as new as
/// can be, so that systems find no erratum to work around. From Zen on.
pub const fn amd_microcode_revision(signature: u32) -> u32 {
    let extended_family = signature >> 20 & 0xff;
    let extended_model = signature >> 16 & 0xf;
    let model_and_stepping = signature & 0xff;
    extended_family << 24 | extended_model << 20 | model_and_stepping << 8 | 0xff
}

/// Features that KVM's paravirtual leaf 0x40000001 offers (EAX; Linux,
/// Documentation/virt/kvm/x86/cpuid.rst): exactly those that engines provide.
#[allow(missing_docs)]
pub mod kvm_features {
    pub const CLOCKSOURCE: u32 = 1 << 0;
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    pub const STEAL_TIME: u32 = 1 << 5;
    pub const PV_EOI: u32 = 1 << 6;
    pub const PV_UNHALT: u32 = 1 << 7;
    pub const PV_TLB_FLUSH: u32 = 1 << 9;
    pub const PV_SEND_IPI: u32 = 1 << 11;
    pub const POLL_CONTROL: u32 = 1 << 12;
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
    /// All of them.
    pub const ALL: u32 = CLOCKSOURCE
        | NOP_IO_DELAY
        | CLOCKSOURCE2
        | STEAL_TIME
        | PV_EOI
        | PV_UNHALT
        | PV_TLB_FLUSH
        | PV_SEND_IPI
        | POLL_CONTROL
        | CLOCKSOURCE_STABLE;
}
