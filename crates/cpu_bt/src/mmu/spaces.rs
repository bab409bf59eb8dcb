//! What the arrays held of address spaces that the vCPU has left: it is put back when the guest returns to one and
//! says that what is known of it is still true, as it does at each switch between processes with
//! process-context identifiers.
//!
//! Kept are pages of the lower half of the address space, where no page is global. The number of an address space
//! ([`Pages`](super::pages::Pages)) changes when the guest declares it out of date; then what is kept is never
//! found again.

use super::tlb::Entry;
use crate::cpu::Cpu;
use crate::jit::state::CodePage;

/// How many address spaces are kept.
const SPACES: usize = 6;

/// A page that was in the arrays.
#[derive(Clone, Copy)]
pub(crate) struct KeptPage {
    pub(super) mmu: u8,
    pub(super) index: u16,
    pub(super) read: Entry,
    pub(super) write: Entry,
}

/// An address space that was left.
#[derive(Default)]
struct Kept {
    /// Its number, or 0.
    space: u32,
    /// Permissions to write are void when they were dropped since.
    write_flushes: u64,
    pages: Vec<KeptPage>,
    code: Vec<CodePage>,
    /// What the block cache knows of its addresses.
    addresses: (u32, u32),
}

/// The address spaces that were left last.
#[derive(Default)]
pub(crate) struct Spaces {
    kept: [Kept; SPACES],
    oldest: usize,
}

impl Spaces {
    /// Forgets an address space.
    pub(crate) fn forget(&mut self, space: u32) {
        self.kept.iter_mut().filter(|kept| kept.space == space).for_each(|kept| kept.space = 0);
    }
}

impl Cpu {
    /// Keeps what the arrays hold of the current address space, which is about to be left.
    pub(super) fn keep_space(&mut self) {
        let space = self.pages.current();
        self.spaces.forget(space);
        let kept = &mut self.spaces.kept[self.spaces.oldest];
        kept.space = 0;
        kept.pages.clear();
        kept.code.clear();
        if !self.tlb.save_lower(&mut kept.pages) || !self.jit.save_lower_pages(&mut kept.code) {
            return;
        }
        kept.space = space;
        kept.write_flushes = self.tlb.write_flushes();
        kept.addresses = self.blocks.lower_addresses();
        self.spaces.oldest = (self.spaces.oldest + 1) % SPACES;
    }

    /// Puts back what was kept of the address space that is current now; the arrays hold nothing of another one.
    pub(super) fn return_to_space(&mut self) {
        let space = self.pages.current();
        let Some(kept) = self.spaces.kept.iter_mut().find(|kept| kept.space == space) else { return };
        kept.space = 0;
        self.tlb.restore(&kept.pages, kept.write_flushes == self.tlb.write_flushes());
        self.jit.restore_lower_pages(&kept.code);
        self.blocks.return_to_lower_addresses(kept.addresses);
    }
}
