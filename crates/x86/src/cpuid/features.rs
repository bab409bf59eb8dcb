//! Every feature bit that a model can have, with its name (as in Linux's /proc/cpuinfo) and where it
//! comes from.
//!
//! To add one: add its line here, and make sure that every engine gives it.

use super::Leaf;

/// One of the four result registers.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A named feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The name.
    pub name: &'static str,
    /// Leaf.
    pub function: u32,
    /// Sub-leaf; 0 for leaves without.
    pub index: u32,
    /// Register.
    pub register: Register,
    /// Bit number.
    pub bit: u32,
    pub(super) source: Source,
    pub(super) vendor: Option<Vendor>,
}

/// The two families of leaf layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    /// Intel and those who follow it.
    Intel,
    /// AMD and Hygon.
    Amd,
}

/// When a model has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Always: part of x86-64, or of the system architecture, which engines provide.
    Always,
    /// In models from this level on, which the host must be able to give.
    Level(u8),
    /// In models from this level on, when the host has it.
    Optional(u8),
    /// Only in the model `host`, when the host has it.
    Host,
    /// In every model, where the engine offers it: what a guest's system protects itself with on a processor that has
    /// weaknesses. The software engine's has none (the bits that say so are below) and offers nothing of it, but takes
    /// a guest that has seen it.
    Protection,
}

impl Leaf {
    /// The value of one register.
    pub fn register(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    pub(super) fn register_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// One register of one of the leaves; zero where there is no such leaf.
pub(super) fn value(leaves: &[Leaf], function: u32, index: u32, register: Register) -> u32 {
    let same = |leaf: &&Leaf| (leaf.function, leaf.index.unwrap_or(0)) == (function, index);
    leaves.iter().find(same).map_or(0, |leaf| leaf.register(register))
}

impl Feature {
    /// Whether instructions of this feature use the upper halves of YMM registers, so that the host's
    /// operating system must have enabled them.
    pub(super) fn needs_avx_state(&self) -> bool {
        const NAMES: [&str; 7] = ["avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq", "avx_vnni"];
        NAMES.contains(&self.name)
    }
}

const fn feature(
    name: &'static str,
    function: u32,
    index: u32,
    register: Register,
    bit: u32,
    source: Source,
) -> Feature {
    Feature { name, function, index, register, bit, source, vendor: None }
}

const fn only(vendor: Vendor, feature: Feature) -> Feature {
    Feature { vendor: Some(vendor), ..feature }
}

const EXT: u32 = 0x8000_0001;

/// All of them.
pub(super) const FEATURES: &[Feature] = {
    use Register::{Eax, Ebx, Ecx, Edx};
    use Source::*;
    use Vendor::*;
    &[
        // Leaf 1 (SDM vol. 2A, tables 3-10 and 3-11). No VME: virtual-8086 mode is without its extensions.
        feature("fpu", 1, 0, Edx, 0, Always),
        feature("de", 1, 0, Edx, 2, Always),
        feature("pse", 1, 0, Edx, 3, Always),
        feature("tsc", 1, 0, Edx, 4, Always),
        feature("msr", 1, 0, Edx, 5, Always),
        feature("pae", 1, 0, Edx, 6, Always),
        feature("mce", 1, 0, Edx, 7, Always),
        feature("cx8", 1, 0, Edx, 8, Always),
        feature("apic", 1, 0, Edx, 9, Always),
        feature("sep", 1, 0, Edx, 11, Always),
        feature("mtrr", 1, 0, Edx, 12, Always),
        feature("pge", 1, 0, Edx, 13, Always),
        feature("mca", 1, 0, Edx, 14, Always),
        feature("cmov", 1, 0, Edx, 15, Always),
        feature("pat", 1, 0, Edx, 16, Always),
        feature("pse36", 1, 0, Edx, 17, Always),
        feature("clflush", 1, 0, Edx, 19, Always),
        feature("mmx", 1, 0, Edx, 23, Always),
        feature("fxsr", 1, 0, Edx, 24, Always),
        feature("sse", 1, 0, Edx, 25, Always),
        feature("sse2", 1, 0, Edx, 26, Always),
        only(Intel, feature("ss", 1, 0, Edx, 27, Always)),
        feature("pni", 1, 0, Ecx, 0, Level(2)),
        feature("pclmulqdq", 1, 0, Ecx, 1, Optional(2)),
        feature("ssse3", 1, 0, Ecx, 9, Level(2)),
        feature("fma", 1, 0, Ecx, 12, Level(3)),
        feature("cx16", 1, 0, Ecx, 13, Level(2)),
        feature("pcid", 1, 0, Ecx, 17, Always),
        feature("sse4_1", 1, 0, Ecx, 19, Level(2)),
        feature("sse4_2", 1, 0, Ecx, 20, Level(2)),
        feature("x2apic", 1, 0, Ecx, 21, Always),
        feature("movbe", 1, 0, Ecx, 22, Level(3)),
        feature("popcnt", 1, 0, Ecx, 23, Level(2)),
        feature("tsc_deadline_timer", 1, 0, Ecx, 24, Always),
        feature("aes", 1, 0, Ecx, 25, Optional(2)),
        feature("xsave", 1, 0, Ecx, 26, Level(3)),
        feature("avx", 1, 0, Ecx, 28, Level(3)),
        feature("f16c", 1, 0, Ecx, 29, Level(3)),
        feature("rdrand", 1, 0, Ecx, 30, Optional(2)),
        feature("hypervisor", 1, 0, Ecx, 31, Always),
        // Leaf 6: the APIC timer always runs.
        feature("arat", 6, 0, Eax, 2, Always),
        // Leaf 7.
        feature("fsgsbase", 7, 0, Ebx, 0, Always),
        feature("tsc_adjust", 7, 0, Ebx, 1, Always),
        feature("bmi1", 7, 0, Ebx, 3, Level(3)),
        feature("avx2", 7, 0, Ebx, 5, Level(3)),
        // What FSAVE and kin do with the last instruction's address is up to the host (bits 6 and 13).
        feature("fdp_excptn_only", 7, 0, Ebx, 6, Optional(1)),
        feature("smep", 7, 0, Ebx, 7, Always),
        feature("bmi2", 7, 0, Ebx, 8, Level(3)),
        feature("erms", 7, 0, Ebx, 9, Always),
        feature("invpcid", 7, 0, Ebx, 10, Always),
        feature("zero_fcs_fds", 7, 0, Ebx, 13, Optional(1)),
        feature("rdseed", 7, 0, Ebx, 18, Optional(2)),
        feature("adx", 7, 0, Ebx, 19, Optional(2)),
        feature("smap", 7, 0, Ebx, 20, Always),
        feature("clflushopt", 7, 0, Ebx, 23, Host),
        feature("clwb", 7, 0, Ebx, 24, Host),
        feature("sha_ni", 7, 0, Ebx, 29, Optional(2)),
        feature("umip", 7, 0, Ecx, 2, Always),
        feature("gfni", 7, 0, Ecx, 8, Optional(3)),
        feature("vaes", 7, 0, Ecx, 9, Optional(3)),
        feature("vpclmulqdq", 7, 0, Ecx, 10, Optional(3)),
        feature("rdpid", 7, 0, Ecx, 22, Always),
        feature("fsrm", 7, 0, Edx, 4, Always),
        only(Intel, feature("spec_ctrl", 7, 0, Edx, 26, Always)),
        only(Intel, feature("arch_capabilities", 7, 0, Edx, 29, Always)),
        // Buffers that VERW clears; STIBP; flushing L1; SSBD.
        only(Intel, feature("md_clear", 7, 0, Edx, 10, Protection)),
        only(Intel, feature("intel_stibp", 7, 0, Edx, 27, Protection)),
        only(Intel, feature("flush_l1d", 7, 0, Edx, 28, Protection)),
        only(Intel, feature("ssbd", 7, 0, Edx, 31, Protection)),
        feature("avx_vnni", 7, 1, Eax, 4, Host),
        // Leaf 0xd: only in models with XSAVE.
        feature("xsaveopt", 0xd, 1, Eax, 0, Optional(3)),
        feature("xsavec", 0xd, 1, Eax, 1, Optional(3)),
        // Leaf 0x80000001 (APM vol. 3, appendix E.4.2).
        feature("lahf_lm", EXT, 0, Ecx, 0, Level(2)),
        feature("abm", EXT, 0, Ecx, 5, Level(3)),
        only(Amd, feature("sse4a", EXT, 0, Ecx, 6, Host)),
        feature("3dnowprefetch", EXT, 0, Ecx, 8, Optional(2)),
        only(Amd, feature("topoext", EXT, 0, Ecx, 22, Always)),
        feature("syscall", EXT, 0, Edx, 11, Always),
        feature("nx", EXT, 0, Edx, 20, Always),
        only(Amd, feature("mmxext", EXT, 0, Edx, 22, Always)),
        feature("pdpe1gb", EXT, 0, Edx, 26, Always),
        feature("rdtscp", EXT, 0, Edx, 27, Always),
        feature("lm", EXT, 0, Edx, 29, Always),
        // Leaf 0x80000007.
        feature("invariant_tsc", 0x8000_0007, 0, Edx, 8, Always),
        // Leaf 0x80000008: IBRS can be set and, as SPEC_CTRL does nothing, costs nothing; no branch type
        // confusion; no speculative store bypass.
        // FXSAVE keeps the pointers of x87 errors, so that nobody has to empty them at each switch.
        only(Amd, feature("xsaveerptr", 0x8000_0008, 0, Ebx, 2, Optional(2))),
        only(Amd, feature("amd_ibrs", 0x8000_0008, 0, Ebx, 14, Always)),
        only(Amd, feature("ibpb", 0x8000_0008, 0, Ebx, 12, Protection)),
        only(Amd, feature("stibp", 0x8000_0008, 0, Ebx, 15, Protection)),
        only(Amd, feature("stibp_always_on", 0x8000_0008, 0, Ebx, 17, Protection)),
        only(Amd, feature("amd_ssbd", 0x8000_0008, 0, Ebx, 24, Protection)),
        only(Amd, feature("amd_psfd", 0x8000_0008, 0, Ebx, 28, Protection)),
        only(Amd, feature("amd_ssb_no", 0x8000_0008, 0, Ebx, 26, Always)),
        only(Amd, feature("btc_no", 0x8000_0008, 0, Ebx, 29, Always)),
        // Leaf 0x80000021: LFENCE serialises; a null selector clears its base; IBRS without ado; not
        // affected by SRSO and TSA.
        only(Amd, feature("lfence_rdtsc", 0x8000_0021, 0, Eax, 2, Always)),
        only(Amd, feature("null_sel_clr_base", 0x8000_0021, 0, Eax, 6, Always)),
        only(Amd, feature("autoibrs", 0x8000_0021, 0, Eax, 8, Always)),
        only(Amd, feature("no_smm_ctl_msr", 0x8000_0021, 0, Eax, 9, Always)),
        // Buffers that VERW clears; what IBPB flushes, and a lesser one.
        only(Amd, feature("verw_clear", 0x8000_0021, 0, Eax, 5, Protection)),
        only(Amd, feature("sbpb", 0x8000_0021, 0, Eax, 27, Protection)),
        only(Amd, feature("ibpb_brtype", 0x8000_0021, 0, Eax, 28, Protection)),
        only(Amd, feature("srso_no", 0x8000_0021, 0, Eax, 29, Always)),
        only(Amd, feature("tsa_sq_no", 0x8000_0021, 0, Ecx, 1, Always)),
        only(Amd, feature("tsa_l1_no", 0x8000_0021, 0, Ecx, 2, Always)),
    ]
};
