//! Comparing models: may a machine that runs with one set of leaves go on with another?

use super::features::{FEATURES, value};
use super::{Leaf, Register};

/// KVM's paravirtual features by bit.
const KVM_FEATURES: [(&str, u32); 10] = [
    ("kvmclock_old", 0),
    ("kvm_nop_io_delay", 1),
    ("kvmclock", 3),
    ("kvm_steal_time", 5),
    ("kvm_pv_eoi", 6),
    ("kvm_pv_unhalt", 7),
    ("kvm_pv_tlb_flush", 9),
    ("kvm_pv_send_ipi", 11),
    ("kvm_poll_control", 12),
    ("kvmclock_stable", 24),
];

/// Registers that hold feature bits: leaf, sub-leaf, register, and which bits are none.
const WORDS: [(u32, u32, Register, u32); 16] = [
    (1, 0, Register::Ecx, 1 << 27),
    (1, 0, Register::Edx, 1 << 28),
    (6, 0, Register::Eax, 0),
    (7, 0, Register::Ebx, 0),
    (7, 0, Register::Ecx, 0),
    (7, 0, Register::Edx, 0),
    (7, 1, Register::Eax, 0),
    (0xd, 0, Register::Eax, 0),
    (0xd, 1, Register::Eax, 0),
    (0x4000_0001, 0, Register::Eax, 0),
    // Several cores (as bit 28 of leaf 1), and what AMD repeats of leaf 1.
    (0x8000_0001, 0, Register::Ecx, 1 << 1),
    (0x8000_0001, 0, Register::Edx, 0x0183_f3ff),
    (0x8000_0007, 0, Register::Edx, 0),
    (0x8000_0008, 0, Register::Ebx, 0),
    (0x8000_0021, 0, Register::Eax, 0),
    (0x8000_0021, 0, Register::Ecx, 0),
];

/// Lists, by name, the features that `needed` has and `offered` lacks, so that a guest which has seen
/// `needed` could not go on with `offered`. Empty when it can. A different vendor counts as a feature.
pub fn missing(needed: &[Leaf], offered: &[Leaf]) -> Vec<String> {
    let vendor = |leaves: &[Leaf]| {
        let words =
            [Register::Ebx, Register::Edx, Register::Ecx].map(|register| value(leaves, 0, 0, register));
        String::from_utf8_lossy(&words.map(u32::to_le_bytes).concat()).into_owned()
    };
    let mut missing = Vec::new();
    if vendor(needed) != vendor(offered) {
        missing.push(format!("vendor {}", vendor(needed)));
    }
    for (function, index, register, ignored) in WORDS {
        let lost =
            value(needed, function, index, register) & !value(offered, function, index, register) & !ignored;
        missing.extend(
            (0..32).filter(|bit| lost >> bit & 1 != 0).map(|bit| name(function, index, register, bit)),
        );
    }
    missing
}

fn name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let named = FEATURES.iter().find(|feature| {
        (feature.function, feature.index, feature.register, feature.bit) == (function, index, register, bit)
    });
    let kvm = KVM_FEATURES.iter().find(|(_, own)| function == 0x4000_0001 && *own == bit);
    match (named, kvm) {
        (Some(feature), _) => feature.name.to_owned(),
        (_, Some((name, _))) => (*name).to_owned(),
        _ => format!("CPUID {function:#x}.{index} {register:?} bit {bit}")
            .to_lowercase()
            .replace("cpuid", "CPUID"),
    }
}
