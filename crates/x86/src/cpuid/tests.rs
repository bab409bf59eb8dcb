//! Models on made-up hosts.

use super::features::{FEATURES, Source};
use super::*;

const AMD: [u8; 12] = *b"AuthenticAMD";
const INTEL: [u8; 12] = *b"GenuineIntel";

/// A host that has every feature of this table except some.
fn host(vendor: [u8; 12], without: &[&str]) -> HostCpuid {
    let word = |at: usize| u32::from_le_bytes([vendor[at], vendor[at + 1], vendor[at + 2], vendor[at + 3]]);
    let leaf = |function, index| Leaf { function, index, eax: 0, ebx: 0, ecx: 0, edx: 0 };
    let mut leaves = vec![
        Leaf { function: 0, index: None, eax: 0x20, ebx: word(0), edx: word(4), ecx: word(8) },
        Leaf { eax: 0x00a2_0f12, ..leaf(1, None) },
        leaf(6, None),
        leaf(7, Some(0)),
        leaf(7, Some(1)),
        leaf(0xd, Some(1)),
        leaf(0x8000_0001, None),
        Leaf { eax: u32::from_le_bytes(*b"Some"), ..leaf(0x8000_0002, None) },
        Leaf { ebx: u32::from_le_bytes(*b" CPU"), ..leaf(0x8000_0003, None) },
        leaf(0x8000_0004, None),
    ];
    for feature in FEATURES.iter().filter(|feature| !without.contains(&feature.name)) {
        let found = leaves
            .iter_mut()
            .find(|leaf| leaf.function == feature.function && leaf.index.unwrap_or(0) == feature.index);
        if let Some(leaf) = found {
            *leaf.register_mut(feature.register) |= 1 << feature.bit;
        }
    }
    HostCpuid { leaves, xcr0: 0xe7 }
}

fn has(leaves: &[Leaf], name: &str) -> bool {
    let feature = FEATURES.iter().find(|feature| feature.name == name).expect("a known feature");
    leaves
        .iter()
        .find(|leaf| leaf.function == feature.function && leaf.index.unwrap_or(0) == feature.index)
        .is_some_and(|leaf| leaf.register(feature.register) >> feature.bit & 1 != 0)
}

fn get(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
    let found =
        leaves.iter().find(|leaf| leaf.function == function && leaf.index.is_none_or(|own| own == index));
    *found.unwrap_or_else(|| panic!("leaf {function:#x}.{index}"))
}

const HZ: u64 = 2_600_000_000;

#[test]
fn the_table_names_each_bit_once() {
    for (at, a) in FEATURES.iter().enumerate() {
        for b in &FEATURES[..at] {
            assert_ne!(a.name, b.name);
            let place = |f: &Feature| (f.function, f.index, f.register, f.bit);
            assert_ne!(place(a), place(b), "{} and {}", a.name, b.name);
        }
    }
}

#[test]
fn numbered_models_have_what_their_level_means() {
    let v2 = ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"];
    let v3 = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
    let system = [
        "fsgsbase",
        "pcid",
        "invpcid",
        "smep",
        "smap",
        "umip",
        "nx",
        "pdpe1gb",
        "rdtscp",
        "rdpid",
        "erms",
        "fsrm",
        "x2apic",
        "tsc_deadline_timer",
        "tsc_adjust",
        "arat",
        "invariant_tsc",
        "hypervisor",
        "syscall",
        "lm",
        "sse2",
    ];
    for vendor in [AMD, INTEL] {
        for (model, level) in [("x86-64-v1", 1), ("x86-64-v2", 2), ("x86-64-v3", 3), ("host", 3)] {
            let leaves = build_for(&host(vendor, &[]), model, 4, HZ).unwrap();
            assert!(system.iter().all(|name| has(&leaves, name)), "{model}");
            assert!(v2.iter().all(|name| has(&leaves, name) == (level >= 2)), "{model}");
            assert!(v3.iter().all(|name| has(&leaves, name) == (level >= 3)), "{model}");
            assert_eq!(has(&leaves, "aes"), level >= 2, "{model}");
            assert_eq!(has(&leaves, "avx_vnni"), model == "host", "{model}");
        }
    }
}

#[test]
fn what_no_engine_gives_is_in_no_model() {
    // A host that claims everything.
    let mut everything = host(AMD, &[]);
    for leaf in everything.leaves.iter_mut().filter(|leaf| leaf.function != 0) {
        (leaf.ebx, leaf.ecx, leaf.edx) = (u32::MAX, u32::MAX, u32::MAX);
    }
    let leaves = build_for(&everything, "host", 2, HZ).unwrap();
    let forbidden = [
        ("monitor", 1, 0, Register::Ecx, 3),
        ("vmx", 1, 0, Register::Ecx, 5),
        ("pdcm", 1, 0, Register::Ecx, 15),
        ("osxsave", 1, 0, Register::Ecx, 27),
        ("hle", 7, 0, Register::Ebx, 4),
        ("rtm", 7, 0, Register::Ebx, 11),
        ("mpx", 7, 0, Register::Ebx, 14),
        ("avx512f", 7, 0, Register::Ebx, 16),
        ("pku", 7, 0, Register::Ecx, 3),
        ("shstk", 7, 0, Register::Ecx, 7),
        ("la57", 7, 0, Register::Ecx, 16),
        ("ibt", 7, 0, Register::Edx, 20),
        ("amx_tile", 7, 0, Register::Edx, 24),
        ("xgetbv1", 0xd, 1, Register::Eax, 2),
        ("xsaves", 0xd, 1, Register::Eax, 3),
        ("svm", 0x8000_0001, 0, Register::Ecx, 2),
        ("monitorx", 0x8000_0001, 0, Register::Ecx, 29),
        ("perfctr_core", 0x8000_0001, 0, Register::Ecx, 23),
        ("ibpb", 0x8000_0008, 0, Register::Ebx, 12),
        ("stibp", 0x8000_0008, 0, Register::Ebx, 15),
    ];
    for (name, function, index, register, bit) in forbidden {
        assert_eq!(get(&leaves, function, index).register(register) >> bit & 1, 0, "{name}");
    }
}

#[test]
fn a_model_that_the_host_cannot_give_is_refused_with_the_reasons() {
    let old = host(INTEL, &["avx2", "movbe", "fma"]);
    let refused = build_for(&old, "x86-64-v3", 1, HZ).unwrap_err();
    let features = vec!["fma", "movbe", "avx2"];
    assert_eq!(refused, ModelError::Missing { model: "x86-64-v3".into(), features });
    assert!(refused.to_string().contains("lacks fma, movbe, avx2"), "{refused}");
    // The default gives way, and says so in the brand string.
    let default = build_for(&old, "default", 1, HZ).unwrap();
    assert_eq!(default, build_for(&old, "x86-64-v2", 1, HZ).unwrap());
    let ancient = host(INTEL, &["sse4_2"]);
    let oldest = build_for(&ancient, "max", 1, HZ).unwrap();
    assert_eq!(oldest, build_for(&ancient, "x86-64-v1", 1, HZ).unwrap());
    assert!(matches!(build_for(&old, "x86-64-v9", 1, HZ), Err(ModelError::Unknown(_))));
    assert_eq!(build_for(&old, "host", 0, HZ), Err(ModelError::Vcpus(0)));
    assert_eq!(build_for(&old, "host", 256, HZ), Err(ModelError::Vcpus(256)));
}

#[test]
fn avx_needs_the_hosts_operating_system() {
    let mut without = host(AMD, &[]);
    without.xcr0 = 3;
    assert!(matches!(build_for(&without, "x86-64-v3", 1, HZ), Err(ModelError::Missing { .. })));
    let leaves = build_for(&without, "host", 1, HZ).unwrap();
    assert!(!has(&leaves, "avx2") && !has(&leaves, "vaes") && has(&leaves, "xsave"));
    assert_eq!((get(&leaves, 0xd, 0).eax, get(&leaves, 0xd, 0).ecx), (3, 576));
    assert!(!leaves.iter().any(|leaf| leaf.function == 0xd && leaf.index == Some(2)));
    without.xcr0 = 0;
    let leaves = build_for(&without, "host", 1, HZ).unwrap();
    assert!(!has(&leaves, "xsave") && !leaves.iter().any(|leaf| leaf.function == 0xd));
}

#[test]
fn the_extended_state_is_described() {
    let leaves = build_for(&host(AMD, &[]), "x86-64-v3", 1, HZ).unwrap();
    let main = get(&leaves, 0xd, 0);
    assert_eq!((main.eax, main.ebx, main.ecx, main.edx), (7, 832, 832, 0));
    let more = get(&leaves, 0xd, 1);
    assert_eq!((more.eax, more.ebx), (3, 832));
    let avx = get(&leaves, 0xd, 2);
    assert_eq!((avx.eax, avx.ebx, avx.ecx), (256, 576, 0));
    let v2 = build_for(&host(AMD, &[]), "x86-64-v2", 1, HZ).unwrap();
    assert!(!v2.iter().any(|leaf| leaf.function == 0xd));
}

#[test]
fn weaknesses_and_costly_mitigations_are_absent() {
    let amd = build_for(&host(AMD, &[]), "x86-64-v3", 1, HZ).unwrap();
    for name in
        ["autoibrs", "srso_no", "btc_no", "amd_ssb_no", "lfence_rdtsc", "null_sel_clr_base", "tsa_l1_no"]
    {
        assert!(has(&amd, name), "{name}");
    }
    let intel = build_for(&host(INTEL, &[]), "x86-64-v3", 1, HZ).unwrap();
    assert!(has(&intel, "arch_capabilities") && has(&intel, "spec_ctrl") && !has(&intel, "autoibrs"));
    // RSBA and RRSBA would call for retpolines; FB_CLEAR for buffer clearing.
    assert_eq!(ARCH_CAPABILITIES & (1 << 2 | 1 << 19 | 1 << 17), 0);
}

#[test]
fn microcode_revisions_look_like_the_processors_own() {
    // Milan, Genoa and Turin with the revisions that they were sold with.
    for (signature, sold_with) in
        [(0x00a0_0f11, 0x0a00_1143), (0x00a1_0f11, 0x0a10_1111), (0x00b0_0f21, 0x0b00_210d)]
    {
        let revision = amd_microcode_revision(signature);
        assert_eq!(revision >> 8, sold_with >> 8);
        assert!(revision > sold_with);
    }
}

#[test]
fn identity_is_the_hosts() {
    for vendor in [AMD, INTEL] {
        let described = host(vendor, &[]);
        let leaves = build_for(&described, "x86-64-v3", 1, HZ).unwrap();
        let first = get(&leaves, 0, 0);
        assert_eq!([first.ebx, first.edx, first.ecx].map(u32::to_le_bytes).concat(), vendor);
        assert_eq!(first.eax, if vendor == AMD { 0xd } else { 0x16 });
        assert_eq!(get(&leaves, 0x8000_0000, 0).eax, if vendor == AMD { 0x8000_0021 } else { 0x8000_0008 });
        assert_eq!(get(&leaves, 1, 0).eax, 0x00a2_0f12);
        assert_eq!(brand(&leaves), "Arnia x86-64-v3 processor");
        assert_eq!(brand(&build_for(&described, "host", 1, HZ).unwrap()), "Some CPU");
        assert_eq!(get(&leaves, 0x8000_0008, 0).eax, 46 | 48 << 8);
    }
}

fn brand(leaves: &[Leaf]) -> String {
    let words = (0x8000_0002..=0x8000_0004).flat_map(|function| {
        let leaf = get(leaves, function, 0);
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    });
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).filter(|byte| *byte != 0).collect();
    String::from_utf8(bytes).unwrap().trim().to_owned()
}

#[test]
fn vcpus_are_cores_of_one_package() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (255, 8)] {
        let amd = build_for(&host(AMD, &[]), "host", vcpus, HZ).unwrap();
        assert_eq!(get(&amd, 1, 0).ebx >> 16 & 0xff, vcpus);
        assert_eq!(get(&amd, 1, 0).edx >> 28 & 1 != 0, vcpus > 1);
        let (threads, cores) = (get(&amd, 0xb, 0), get(&amd, 0xb, 1));
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 1 << 8));
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (bits, vcpus, 2 << 8 | 1));
        assert_eq!(get(&amd, 0x8000_0008, 0).ecx, (vcpus - 1) | bits << 12);
        let l3 = get(&amd, 0x8000_001d, 3);
        assert_eq!((l3.eax >> 14 & 0xfff) + 1, 1 << bits);
        let size = ((l3.ebx >> 22) + 1) * ((l3.ebx & 0xfff) + 1) * (l3.ecx + 1);
        assert_eq!(size, 16 << 20);
        assert_eq!(get(&amd, 0x8000_001d, 4).eax, 0);
        let intel = build_for(&host(INTEL, &[]), "host", vcpus, HZ).unwrap();
        assert_eq!(get(&intel, 4, 0).eax >> 26, ((1u32 << bits) - 1).min(63));
        assert_eq!(get(&intel, 4, 3).eax >> 14 & 0xfff, (1 << bits) - 1);
        assert!(!intel.iter().any(|leaf| leaf.function == 0x8000_001d));
    }
}

#[test]
fn frequencies_are_told() {
    for hz in [1_996_250_000, 2_600_000_000, 5_000_000_000u64] {
        let intel = build_for(&host(INTEL, &[]), "host", 1, hz).unwrap();
        let leaf = get(&intel, 0x15, 0);
        let told = leaf.ecx as u64 * leaf.ebx as u64 / leaf.eax as u64;
        assert!(told.abs_diff(hz) < 1000, "{told}");
        assert_eq!(get(&intel, 0x16, 0).eax as u64, hz / 1_000_000);
        let kvm = get(&intel, 0x4000_0010, 0);
        assert_eq!((kvm.eax as u64, kvm.ebx), (hz / 1000, 1_000_000));
    }
}

#[test]
fn the_hypervisor_says_who_it_is() {
    let leaves = build_for(&host(AMD, &[]), "default", 1, HZ).unwrap();
    let first = get(&leaves, 0x4000_0000, 0);
    assert_eq!(first.eax, 0x4000_0010);
    assert_eq!([first.ebx, first.ecx, first.edx].map(u32::to_le_bytes).concat(), b"KVMKVMKVM\0\0\0");
    assert_eq!(get(&leaves, 0x4000_0001, 0).eax, kvm_features::ALL);
    // No hint that vCPUs are never preempted.
    assert_eq!(get(&leaves, 0x4000_0001, 0).edx, 0);
}

#[test]
fn a_query_fills_in_what_changes() {
    let leaves = build_for(&host(AMD, &[]), "x86-64-v3", 4, HZ).unwrap();
    let running = Running { apic_id: 3, apic_enabled: true, osxsave: false, xcr0: 1 };
    let one = query(&leaves, 1, 99, &running);
    assert_eq!((one.ebx >> 24, one.ecx >> 27 & 1, one.edx >> 9 & 1), (3, 0, 1));
    assert_eq!(query(&leaves, 1, 0, &Running { osxsave: true, ..running }).ecx >> 27 & 1, 1);
    let disabled = Running { apic_enabled: false, ..running };
    assert_eq!(query(&leaves, 1, 0, &disabled).edx >> 9 & 1, 0);
    assert_eq!(query(&leaves, 0x8000_0001, 0, &disabled).edx >> 9 & 1, 0);
    for (xcr0, size) in [(1, 576), (3, 576), (7, 832)] {
        let running = Running { xcr0, ..running };
        assert_eq!(query(&leaves, 0xd, 0, &running).ebx, size);
        assert_eq!(query(&leaves, 0xd, 0, &running).ecx, 832);
        assert_eq!(query(&leaves, 0xd, 1, &running).ebx, size);
        assert_eq!(query(&leaves, 0xd, 2, &running).ebx, 576);
    }
    for index in [0, 1, 2, 7] {
        assert_eq!(query(&leaves, 0xb, index, &running).edx, 3);
        assert_eq!(query(&leaves, 0xb, index, &running).ecx & 0xff, index);
    }
    let core = query(&leaves, 0x8000_001e, 0, &running);
    assert_eq!((core.eax, core.ebx & 0xff), (3, 3));
    for (function, index) in [(5, 0), (0x14, 0), (7, 2), (0xd, 3), (0x4000_0005, 0), (0xffff_ffff, 0)] {
        let none = query(&leaves, function, index, &running);
        assert_eq!((none.eax, none.ebx, none.ecx, none.edx), (0, 0, 0, 0), "{function:#x}.{index}");
    }
    let whole = for_vcpu(&leaves, 2);
    assert_eq!(get(&whole, 1, 0).ebx >> 24, 2);
}

#[test]
fn comparisons_name_what_would_be_lost() {
    let new = build_for(&host(AMD, &[]), "host", 4, HZ).unwrap();
    let old = build_for(&host(AMD, &["avx2", "sha_ni", "xsavec"]), "host", 4, HZ).unwrap();
    assert_eq!(missing(&new, &old), ["avx2", "sha_ni", "xsavec"]);
    assert!(missing(&old, &new).is_empty());
    assert!(missing(&new, &new).is_empty());
    let intel = build_for(&host(INTEL, &[]), "host", 4, HZ).unwrap();
    assert_eq!(missing(&new, &intel)[0], "vendor AuthenticAMD");
    // The number of vCPUs is no feature, an unnamed bit and a paravirtual one are.
    assert!(missing(&new, &build_for(&host(AMD, &[]), "host", 1, HZ).unwrap()).is_empty());
    let mut odd = new.clone();
    for leaf in &mut odd {
        match (leaf.function, leaf.index) {
            (7, Some(0)) => leaf.ecx |= 1 << 31,
            (0x4000_0001, _) => leaf.eax |= 1 << 31,
            _ => {}
        }
    }
    assert_eq!(missing(&odd, &new), ["CPUID 0x7.0 ecx bit 31", "CPUID 0x40000001.0 eax bit 31"]);
    let mut clockless = new.clone();
    clockless.iter_mut().filter(|leaf| leaf.function == 0x4000_0001).for_each(|leaf| leaf.eax &= !(1 << 5));
    assert_eq!(missing(&new, &clockless), ["kvm_steal_time"]);
}

#[test]
fn this_host_gives_its_default() {
    let leaves = build("default", 2, HZ).unwrap();
    assert!(has(&leaves, "sse2"));
    let functions: Vec<_> = leaves.iter().map(|leaf| (leaf.function, leaf.index)).collect();
    assert!(functions.is_sorted() && functions.windows(2).all(|two| two[0] != two[1]));
    // What the host executes, the host has.
    let real = HostCpuid::read();
    for feature in FEATURES.iter().filter(|feature| !matches!(feature.source, Source::Always)) {
        assert!(!has(&leaves, feature.name) || real.has(feature), "{}", feature.name);
    }
}

#[test]
fn a_model_is_cut_down_to_what_an_engine_offers() {
    let host = HostCpuid::read();
    let Ok(full) = build_for(&host, "x86-64-v2", 2, 2_000_000_000) else { return };
    let mut offered = full.clone();
    assert_eq!(build_within(&offered, &host, "x86-64-v2", 2, 2_000_000_000), Ok(full.clone()));
    // An engine without PCID and steal time, on a processor that addresses less.
    for leaf in &mut offered {
        match leaf.function {
            1 => leaf.ecx &= !(1 << 17),
            0x4000_0001 => leaf.eax &= !kvm_features::STEAL_TIME,
            0x8000_0008 => leaf.eax = leaf.eax & !0xff | 39,
            _ => {}
        }
    }
    let less = build_within(&offered, &host, "x86-64-v2", 2, 2_000_000_000).unwrap();
    assert_eq!(missing(&full, &less), ["pcid", "kvm_steal_time"]);
    assert_eq!((physical_address_bits(&full), physical_address_bits(&less)), (PHYS_BITS, 39));
    // An engine that lacks what the model is made of.
    for leaf in offered.iter_mut().filter(|leaf| leaf.function == 1) {
        leaf.ecx &= !(1 << 20);
    }
    let error = build_within(&offered, &host, "x86-64-v2", 2, 2_000_000_000).unwrap_err();
    assert_eq!(error, ModelError::Missing { model: "x86-64-v2".into(), features: vec!["sse4_2"] });
}

#[test]
fn protection_is_added_where_an_engine_offers_it() {
    for (vendor, names) in [(AMD, ["ibpb", "ibpb_brtype"]), (INTEL, ["md_clear", "ssbd"])] {
        let host = host(vendor, &[]);
        let plain = build_for(&host, "x86-64-v3", 1, HZ).unwrap();
        assert!(names.iter().all(|name| !has(&plain, name)), "the software engine's processor needs none");
        // What KVM would offer on a processor with all weaknesses and every means against them.
        let mut offered = plain.clone();
        for leaf in &mut offered {
            match leaf.function {
                7 => leaf.edx = u32::MAX,
                0x8000_0008 => leaf.ebx = !(1 << 26 | 1 << 29),
                0x8000_0021 => leaf.eax = !(1 << 29),
                _ => {}
            }
        }
        let within = build_within(&offered, &host, "x86-64-v3", 1, HZ).unwrap();
        assert!(names.iter().all(|name| has(&within, name)));
        let added = missing(&within, &plain);
        let protection = |name: &String| {
            FEATURES.iter().any(|feature| feature.name == name && feature.source == Source::Protection)
        };
        assert!(added.len() >= 4 && added.iter().all(protection), "{added:?}");
        assert!(!has(&within, "srso_no") && !has(&within, "amd_ssb_no"));
    }
}

#[test]
fn virtualization_is_added_where_it_is_offered() {
    let Ok(plain) = build_for(&HostCpuid::read(), "default", 1, 2_000_000_000) else { return };
    let leaf = |function, ecx| Leaf { function, index: None, eax: 1, ebx: 2, ecx, edx: 4 };
    let mut leaves = plain.clone();
    assert!(!add_virtualization(&mut leaves, &[leaf(1, 0), leaf(0x8000_0001, 0), leaf(0x8000_000a, 0)]));
    assert_eq!(leaves, plain);
    assert!(add_virtualization(&mut leaves, &[leaf(0x8000_0001, 1 << 2), leaf(0x8000_000a, 3)]));
    let find = |function: u32| leaves.iter().find(|leaf| leaf.function == function).copied().unwrap();
    assert_eq!(find(0x8000_000a), leaf(0x8000_000a, 3));
    assert!(find(0x8000_0001).ecx & 1 << 2 != 0 && find(0x8000_0000).eax >= 0x8000_000a);
    let mut leaves = plain;
    assert!(add_virtualization(&mut leaves, &[leaf(1, 1 << 5)]));
}
