//! Event counts of one vCPU, read by other threads.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count, written by one thread.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    #[inline(always)]
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    #[inline(always)]
    pub(crate) fn add_many(&self, count: u64) {
        // Only the vCPU's thread writes, so nothing is lost between the two.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counts {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Event counts of one vCPU.
        #[derive(Default)]
        #[repr(align(128))]
        pub(crate) struct VcpuCounts {
            $($(#[doc = $doc])* pub(crate) $name: Count,)*
        }

        impl VcpuCounts {
            /// The sums over vCPUs, by name.
            pub(crate) fn sums<'a>(
                all: impl Iterator<Item = &'a VcpuCounts> + Clone,
            ) -> Vec<(String, u64)> {
                vec![$((stringify!($name).into(), all.clone().map(|counts| counts.$name.get()).sum()),)*]
            }
        }
    };
}

counts! {
    /// How often a quiet vCPU has given back what it had decoded and looked up.
    caches_given_back,
    /// Returns from translated code at an exit that was not linked yet.
    exits_unlinked,
    /// Returns from translated code at an indirect branch, or before an instruction that is not
    /// translated.
    exits_unknown_target,
    /// Returns from translated code because of a request: an interrupt, a kick, voided code.
    exits_request,
    /// Returns from translated code with a fault.
    exits_fault,
    /// Returns from translated code behind an instruction done by a handler that changed the course.
    exits_handler,
    /// Pages entered in the software TLB for reading.
    tlb_misses_read,
    /// Pages entered in the software TLB for writing, or found not to be writable without report.
    tlb_misses_write,
    /// Code pages looked up in the page tables.
    tlb_misses_fetch,
    /// Times that all translations of addresses were forgotten.
    tlb_flushes_all,
    /// Times that those of pages that are not global were.
    tlb_flushes_local,
    /// Times that one page was forgotten.
    tlb_flushes_page,
    /// Instructions in translated code that met a device, a page edge or watched code.
    slow_instructions,
    /// Traces that were executed twice and compared.
    lockstep_traces,
    /// Instructions that were interpreted to compare.
    lockstep_instructions,
    /// Traces that could not be compared: they read what the manual leaves undefined.
    lockstep_uncertain,
    /// Differences that were gone at the second try: another writer's.
    lockstep_races,
}
