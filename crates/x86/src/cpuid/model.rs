//! From the name of a model to its leaves.

use super::features::{FEATURES, Feature, Source, Vendor, value};
use super::{HostCpuid, LINEAR_BITS, Leaf, PHYS_BITS, Register, kvm_features, topology};
use crate::reg::xcr0;
use std::fmt;

/// Why there are no leaves for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelError {
    /// There is no model of this name.
    Unknown(String),
    /// The host lacks features that the model needs.
    Missing {
        /// The model.
        model: String,
        /// What is missing, by name.
        features: Vec<&'static str>,
    },
    /// So many vCPUs cannot be described: 1 to 255 can.
    Vcpus(u32),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::Unknown(model) => write!(
                f,
                "there is no CPU model {model:?}; choose x86-64-v1, x86-64-v2, x86-64-v3, host or default"
            ),
            ModelError::Missing { model, features } => write!(
                f,
                "the host's processor cannot give CPU model {model}: it lacks {}; choose an older model or default",
                features.join(", ")
            ),
            ModelError::Vcpus(count) => {
                write!(f, "a machine cannot have {count} vCPUs; choose a number from 1 to 255")
            }
        }
    }
}

impl std::error::Error for ModelError {}

/// The numbered models, newest first.
const LEVELS: [(&str, u8); 3] = [("x86-64-v3", 3), ("x86-64-v2", 2), ("x86-64-v1", 1)];

/// What a model has.
#[derive(Clone, Copy)]
enum Wanted {
    Level(u8),
    Host,
}

/// Makes the leaves of a model, for vCPU 0, on the host that this runs on.
///
/// # Errors
/// When the model is unknown, the host cannot give it, or there are too many vCPUs.
pub fn build(model: &str, vcpus: u32, tsc_hz: u64) -> Result<Vec<Leaf>, ModelError> {
    build_for(&HostCpuid::read(), model, vcpus, tsc_hz)
}

/// Makes the leaves of a model, for vCPU 0, on a host that is described.
///
/// # Errors
/// As [`build`].
pub fn build_for(host: &HostCpuid, model: &str, vcpus: u32, tsc_hz: u64) -> Result<Vec<Leaf>, ModelError> {
    if !(1..=255).contains(&vcpus) {
        return Err(ModelError::Vcpus(vcpus));
    }
    let (name, wanted) = match model {
        "host" => ("host", Wanted::Host),
        "default" | "max" => {
            let newest = LEVELS.iter().find(|(_, level)| lacks(host, *level).is_empty());
            // The oldest level needs nothing of the host.
            let &(name, level) = newest.unwrap_or(&LEVELS[LEVELS.len() - 1]);
            (name, Wanted::Level(level))
        }
        _ => {
            let found = LEVELS.iter().find(|(name, _)| *name == model);
            let &(name, level) = found.ok_or_else(|| ModelError::Unknown(model.to_owned()))?;
            let features = lacks(host, level);
            if !features.is_empty() {
                return Err(ModelError::Missing { model: name.to_owned(), features });
            }
            (name, Wanted::Level(level))
        }
    };
    let mut leaves = identification(host, name, wanted);
    leaves.extend(topology::leaves(host.vendor(), vcpus));
    set_features(&mut leaves, host, wanted);
    complete_leaf_1(&mut leaves, host, vcpus);
    complete_extended(&mut leaves, host.vendor(), vcpus);
    add_xsave(&mut leaves);
    add_time(&mut leaves, host.vendor(), tsc_hz);
    add_limits(&mut leaves, host);
    leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
    Ok(leaves)
}

/// Makes the leaves of a model of which every feature is in `offered`: what an engine can give, as
/// [`Engine::offered_cpuid`] of crate `cpu` tells. Features that a model has everywhere are left out when they
/// are not offered; those that make a numbered model what it is are not. What systems protect themselves with on
/// processors that have weaknesses is added.
///
/// # Errors
/// As [`build`]; features that are not offered are missing.
pub fn build_within(
    offered: &[Leaf],
    host: &HostCpuid,
    model: &str,
    vcpus: u32,
    tsc_hz: u64,
) -> Result<Vec<Leaf>, ModelError> {
    let mut leaves = build_for(&host.limited_to(offered), model, vcpus, tsc_hz)?;
    limit(&mut leaves, offered);
    add_protection(&mut leaves, host.vendor(), offered);
    Ok(leaves)
}

/// Adds what the engine offers for systems to protect themselves with, to leaves that the model has.
fn add_protection(leaves: &mut [Leaf], vendor: Vendor, offered: &[Leaf]) {
    let protection = |feature: &&Feature| {
        feature.source == Source::Protection && feature.vendor.is_none_or(|only| only == vendor)
    };
    for feature in FEATURES.iter().filter(protection) {
        let (function, index) = (feature.function, feature.index);
        let same = |leaf: &&mut Leaf| (leaf.function, leaf.index.unwrap_or(0)) == (function, index);
        if let Some(leaf) = leaves.iter_mut().find(same) {
            let offer = value(offered, function, index, feature.register);
            *leaf.register_mut(feature.register) |= offer & 1 << feature.bit;
        }
    }
}

/// Takes away from `leaves` every feature that is not in `offered`.
pub fn limit(leaves: &mut [Leaf], offered: &[Leaf]) {
    for leaf in leaves {
        let (function, index) = (leaf.function, leaf.index.unwrap_or(0));
        for feature in FEATURES.iter().filter(|f| (f.function, f.index) == (function, index)) {
            if value(offered, function, index, feature.register) >> feature.bit & 1 == 0 {
                *leaf.register_mut(feature.register) &= !(1 << feature.bit);
            }
        }
        match function {
            0x4000_0001 => leaf.eax &= value(offered, function, index, Register::Eax),
            0x8000_0008 => {
                // Processors that address less cannot translate what a guest would map further up.
                let bits = value(offered, function, index, Register::Eax) & 0xff;
                leaf.eax = leaf.eax & !0xff | (leaf.eax & 0xff).min(bits);
            }
            _ => {}
        }
    }
}

/// Adds hardware virtualization for the guest's own use, if it is in `offered`: SVM with its leaf (APM vol. 3,
/// appendix E.4.9) or VMX. Returns whether it is.
pub fn add_virtualization(leaves: &mut Vec<Leaf>, offered: &[Leaf]) -> bool {
    const SVM: u32 = 1 << 2;
    const SVM_LEAF: u32 = 0x8000_000a;
    const VMX: u32 = 1 << 5;
    let find = |function: u32| offered.iter().find(|leaf| leaf.function == function);
    let has = |function: u32, bit: u32| find(function).is_some_and(|leaf| leaf.ecx & bit != 0);
    if has(1, VMX) {
        leaf_mut(leaves, 1, None).ecx |= VMX;
        return true;
    }
    let Some(svm) = find(SVM_LEAF).filter(|_| has(0x8000_0001, SVM)) else { return false };
    leaf_mut(leaves, 0x8000_0001, None).ecx |= SVM;
    *leaf_mut(leaves, SVM_LEAF, None) = Leaf { index: None, ..*svm };
    let highest = leaf_mut(leaves, 0x8000_0000, None);
    highest.eax = highest.eax.max(SVM_LEAF);
    leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
    true
}

/// Width of guest-physical addresses in bits that these leaves tell of.
pub fn physical_address_bits(leaves: &[Leaf]) -> u32 {
    leaves.iter().find(|leaf| leaf.function == 0x8000_0008).map_or(PHYS_BITS, |leaf| leaf.eax & 0xff)
}

/// What the host lacks for a numbered model.
fn lacks(host: &HostCpuid, level: u8) -> Vec<&'static str> {
    let needed = |feature: &&Feature| matches!(feature.source, Source::Level(since) if since <= level);
    FEATURES.iter().filter(needed).filter(|f| !host.has(f)).map(|f| f.name).collect()
}

/// The leaf, which is added when it is not there yet.
fn leaf_mut(leaves: &mut Vec<Leaf>, function: u32, index: Option<u32>) -> &mut Leaf {
    let same = |leaf: &Leaf| leaf.function == function && leaf.index == index;
    let at = leaves.iter().position(same).unwrap_or_else(|| {
        leaves.push(Leaf { function, index, eax: 0, ebx: 0, ecx: 0, edx: 0 });
        leaves.len() - 1
    });
    &mut leaves[at]
}

/// Brand string, and nothing else yet.
fn identification(host: &HostCpuid, name: &str, wanted: Wanted) -> Vec<Leaf> {
    let mut own = [0; 48];
    let text = format!("Arnia {name} processor");
    own[..text.len()].copy_from_slice(text.as_bytes());
    let brand = match wanted {
        Wanted::Host => host.brand().unwrap_or(own),
        Wanted::Level(_) => own,
    };
    let word = |at: usize| u32::from_le_bytes([brand[at], brand[at + 1], brand[at + 2], brand[at + 3]]);
    (0..3)
        .map(|part| Leaf {
            function: 0x8000_0002 + part as u32,
            index: None,
            eax: word(part * 16),
            ebx: word(part * 16 + 4),
            ecx: word(part * 16 + 8),
            edx: word(part * 16 + 12),
        })
        .collect()
}

fn set_features(leaves: &mut Vec<Leaf>, host: &HostCpuid, wanted: Wanted) {
    // These leaves exist even when they are empty.
    for (function, index) in [(1, None), (6, None), (7, Some(0)), (0x8000_0001, None)] {
        leaf_mut(leaves, function, index);
    }
    for feature in FEATURES {
        let meant = feature.vendor.is_none_or(|vendor| vendor == host.vendor());
        let given = match (feature.source, wanted) {
            (Source::Always, _) => true,
            // Those who know an engine's offer add it.
            (Source::Protection, _) => false,
            (Source::Level(since), Wanted::Level(level)) => since <= level,
            (Source::Optional(since), Wanted::Level(level)) => since <= level && host.has(feature),
            (Source::Host, Wanted::Level(_)) => false,
            (_, Wanted::Host) => host.has(feature),
        };
        if meant && given {
            let index = matches!(feature.function, 7 | 0xd).then_some(feature.index);
            *leaf_mut(leaves, feature.function, index).register_mut(feature.register) |= 1 << feature.bit;
        }
    }
    if leaves.iter().any(|leaf| leaf.function == 7 && leaf.index == Some(1)) {
        leaf_mut(leaves, 7, Some(0)).eax = 1;
    }
}

fn complete_leaf_1(leaves: &mut Vec<Leaf>, host: &HostCpuid, vcpus: u32) {
    const HTT: u32 = 1 << 28;
    let leaf = leaf_mut(leaves, 1, None);
    leaf.eax = host.signature();
    // CLFLUSH lines of 8 * 8 bytes; how many logical processors the package has; APIC ID 0.
    leaf.ebx = 8 << 8 | vcpus << 16;
    if vcpus > 1 {
        leaf.edx |= HTT;
    }
}

fn complete_extended(leaves: &mut Vec<Leaf>, vendor: Vendor, vcpus: u32) {
    leaf_mut(leaves, 0x8000_0008, None).eax = PHYS_BITS | LINEAR_BITS << 8;
    if vendor == Vendor::Amd {
        const CMP_LEGACY: u32 = 1 << 1;
        /// Bits that AMD repeats from leaf 1.
        const REPEATED: u32 = 0x0183_f3ff;
        let repeated = leaf_mut(leaves, 1, None).edx & REPEATED;
        let leaf = leaf_mut(leaves, 0x8000_0001, None);
        leaf.edx |= repeated;
        if vcpus > 1 {
            leaf.ecx |= CMP_LEGACY;
        }
        leaf_mut(leaves, 0x8000_0008, None).ecx = (vcpus - 1) | topology::id_bits(vcpus) << 12;
    }
}

/// Leaf 0xd (SDM vol. 2A, table 3-8). The sizes for the present XCR0 are filled in by whoever executes
/// CPUID.
fn add_xsave(leaves: &mut Vec<Leaf>) {
    const XSAVE: u32 = 1 << 26;
    const AVX: u32 = 1 << 28;
    let features = leaf_mut(leaves, 1, None).ecx;
    if features & XSAVE == 0 {
        leaves.retain(|leaf| leaf.function != 0xd);
        return;
    }
    let mut state = xcr0::X87 | xcr0::SSE;
    if features & AVX != 0 {
        state |= xcr0::AVX;
    }
    let size = super::xsave_area_size(state);
    let main = leaf_mut(leaves, 0xd, Some(0));
    (main.eax, main.ebx, main.ecx) = (state as u32, size, size);
    leaf_mut(leaves, 0xd, Some(1)).ebx = size;
    if state & xcr0::AVX != 0 {
        let avx = leaf_mut(leaves, 0xd, Some(2));
        (avx.eax, avx.ebx) = (256, 576);
    }
}

/// Frequencies, and KVM's paravirtual leaves.
fn add_time(leaves: &mut Vec<Leaf>, vendor: Vendor, tsc_hz: u64) {
    let (khz, mhz) = ((tsc_hz / 1000) as u32, (tsc_hz / 1_000_000) as u32);
    if vendor == Vendor::Intel {
        // TSC = crystal * EBX / EAX. The crystal is what the APIC timer counts: 1 GHz.
        *leaf_mut(leaves, 0x15, None) =
            Leaf { function: 0x15, index: None, eax: 1_000_000, ebx: khz, ecx: 1_000_000_000, edx: 0 };
        *leaf_mut(leaves, 0x16, None) =
            Leaf { function: 0x16, index: None, eax: mhz, ebx: mhz, ecx: 100, edx: 0 };
    }
    let name = *b"KVMKVMKVM\0\0\0";
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    let leaf = |function, eax, ebx, ecx, edx| Leaf { function, index: None, eax, ebx, ecx, edx };
    leaves.push(leaf(0x4000_0000, 0x4000_0010, word(0), word(4), word(8)));
    leaves.push(leaf(0x4000_0001, kvm_features::ALL, 0, 0, 0));
    // The TSC and the APIC timer in kHz.
    leaves.push(leaf(0x4000_0010, khz, 1_000_000, 0, 0));
}

/// The highest leaf of each range, and the vendor.
fn add_limits(leaves: &mut Vec<Leaf>, host: &HostCpuid) {
    let highest = |leaves: &[Leaf], range: std::ops::Range<u32>| {
        leaves.iter().map(|leaf| leaf.function).filter(|f| range.contains(f)).max().unwrap_or(range.start)
    };
    let (ebx, edx, ecx) = host.vendor_registers();
    let basic = highest(leaves, 0..0x4000_0000);
    *leaf_mut(leaves, 0, None) = Leaf { function: 0, index: None, eax: basic, ebx, ecx, edx };
    let extended = highest(leaves, 0x8000_0000..0x9000_0000);
    let (ebx, edx, ecx) = if host.vendor() == Vendor::Amd { (ebx, edx, ecx) } else { (0, 0, 0) };
    *leaf_mut(leaves, 0x8000_0000, None) =
        Leaf { function: 0x8000_0000, index: None, eax: extended, ebx, ecx, edx };
}
