//! Leaves of processor topology and caches: all vCPUs are cores of one package, one thread each, with
//! their own first and second level cache and a common third one.

use super::Leaf;
use super::features::Vendor;

/// A cache, as the deterministic leaves describe it.
struct Cache {
    /// 1 is data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
    shared: bool,
}

const LINE: u32 = 64;

const CACHES: [Cache; 4] = [
    // 32 KiB, 32 KiB, 1 MiB, 16 MiB.
    Cache { kind: 1, level: 1, ways: 8, sets: 64, shared: false },
    Cache { kind: 2, level: 1, ways: 8, sets: 64, shared: false },
    Cache { kind: 3, level: 2, ways: 16, sets: 1024, shared: false },
    Cache { kind: 3, level: 3, ways: 16, sets: 16384, shared: true },
];

impl Cache {
    fn kib(&self) -> u32 {
        self.ways * self.sets * LINE / 1024
    }
}

/// How many bits of the APIC ID number the vCPUs.
pub(super) fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// The deterministic cache leaves: 4 on Intel (SDM vol. 2A, table 3-8), 0x8000001d on AMD (APM vol. 3,
/// appendix E.4.15).
fn caches(vendor: Vendor, vcpus: u32) -> impl Iterator<Item = Leaf> {
    let ids = 1 << id_bits(vcpus);
    let (function, cores) = match vendor {
        Vendor::Intel => (4, (ids - 1u32).min(63) << 26),
        Vendor::Amd => (0x8000_001d, 0),
    };
    let leaf = move |index, eax, ebx, ecx| Leaf { function, index: Some(index), eax, ebx, ecx, edx: 0 };
    let describe = move |(index, cache): (usize, Cache)| {
        let sharing = if cache.shared { ids - 1 } else { 0 };
        let eax = cache.kind | cache.level << 5 | 1 << 8 | sharing << 14 | cores;
        leaf(index as u32, eax, (LINE - 1) | (cache.ways - 1) << 22, cache.sets - 1)
    };
    CACHES.into_iter().enumerate().map(describe).chain(std::iter::once(leaf(CACHES.len() as u32, 0, 0, 0)))
}

/// Leaf 0xb (SDM vol. 2A, table 3-8): thread level, then core level. EDX, the APIC ID, is that of vCPU 0.
fn extended_topology(vcpus: u32) -> [Leaf; 3] {
    let leaf = |index, eax, ebx, ecx| Leaf { function: 0xb, index: Some(index), eax, ebx, ecx, edx: 0 };
    [leaf(0, 0, 1, 1 << 8), leaf(1, id_bits(vcpus), vcpus, 2 << 8 | 1), leaf(2, 0, 0, 2)]
}

/// All of them.
pub(super) fn leaves(vendor: Vendor, vcpus: u32) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = caches(vendor, vcpus).collect();
    leaves.extend(extended_topology(vcpus));
    let leaf = |function, eax, ebx, ecx, edx| Leaf { function, index: None, eax, ebx, ecx, edx };
    let [data, code, l2, l3] = &CACHES;
    let l1 = |cache: &Cache| cache.kib() << 24 | cache.ways << 16 | 1 << 8 | LINE;
    // Associativity 8 is the code for 16 ways.
    let l2_size = l2.kib() << 16 | 8 << 12 | LINE;
    match vendor {
        Vendor::Intel => {
            // "Ask leaf 4" and "ask leaf 18h" instead of descriptors.
            leaves.push(leaf(2, 0x00fe_ff01, 0, 0, 0));
            leaves.push(leaf(0x8000_0006, 0, 0, l2_size, 0));
        }
        Vendor::Amd => {
            // First-level TLBs: 64 entries, fully associative, for all sizes.
            leaves.push(leaf(0x8000_0005, 0xff40_ff40, 0xff40_ff40, l1(data), l1(code)));
            // Second-level TLBs: 1024 entries in 8 ways (code 6); the third-level cache in units of 512
            // KiB.
            let l3_size = (l3.kib() / 512) << 18 | 8 << 12 | 1 << 8 | LINE;
            leaves.push(leaf(0x8000_0006, 0x6400_6400, 0x6400_6400, l2_size | 1 << 8, l3_size));
            // Extended APIC ID, core and node of vCPU 0: one thread a core, one node.
            leaves.push(leaf(0x8000_001e, 0, 0, 0, 0));
        }
    }
    leaves
}
