//! Which base address register an address belongs to.

use device::pci::{Bar, BarKind, Bdf, PciFunction};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory or I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Memory,
    Io,
}

impl Space {
    pub(super) fn of(kind: BarKind) -> Space {
        match kind {
            BarKind::Io => Space::Io,
            BarKind::Memory32 | BarKind::Memory64 { .. } => Space::Memory,
        }
    }
}

/// The enabled base address registers of all functions at one moment.
#[derive(Default)]
pub(super) struct BarMap {
    memory: Vec<Entry>,
    io: Vec<Entry>,
}

/// One of them. Entries are sorted and do not overlap.
struct Entry {
    base: u64,
    size: u64,
    index: usize,
    function: Arc<dyn PciFunction>,
}

/// Where an access goes.
pub(super) struct Target<'a> {
    pub(super) function: &'a dyn PciFunction,
    pub(super) index: usize,
    pub(super) offset: u64,
}

impl BarMap {
    /// Collects the registers of `functions`. Where the guest let registers overlap, the function that
    /// comes first has the range and the other one has nothing: a bus cannot carry two answers.
    pub(super) fn new(functions: &BTreeMap<Bdf, Arc<dyn PciFunction>>) -> BarMap {
        let (mut memory, mut io) = (BTreeMap::new(), BTreeMap::new());
        for function in functions.values() {
            for bar in function.bars() {
                let map = match Space::of(bar.kind) {
                    Space::Memory => &mut memory,
                    Space::Io => &mut io,
                };
                insert(map, bar, function);
            }
        }
        BarMap { memory: memory.into_values().collect(), io: io.into_values().collect() }
    }

    /// The register that all of `[address, address + len)` belongs to.
    pub(super) fn find(&self, space: Space, address: u64, len: u64) -> Option<Target<'_>> {
        let entries = match space {
            Space::Memory => &self.memory,
            Space::Io => &self.io,
        };
        let after = entries.partition_point(|entry| entry.base <= address);
        let entry = &entries[after.checked_sub(1)?];
        let offset = address - entry.base;
        let inside = offset.checked_add(len)? <= entry.size;
        inside.then_some(Target { function: &*entry.function, index: entry.index, offset })
    }
}

fn insert(map: &mut BTreeMap<u64, Entry>, bar: Bar, function: &Arc<dyn PciFunction>) {
    // Base 0 is a register that nobody has set.
    let Some(end) = bar.base.checked_add(bar.size).filter(|_| bar.enabled && bar.base != 0) else { return };
    let overlaps =
        map.range(..end).next_back().is_some_and(|(base, other): (_, &Entry)| base + other.size > bar.base);
    if !overlaps {
        let (base, size, index) = (bar.base, bar.size, bar.index);
        map.insert(base, Entry { base, size, index, function: function.clone() });
    }
}
