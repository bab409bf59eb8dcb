//! The second-level TLB: what page-table walks have found, for all address spaces that the guest has
//! not said to be out of date.
//!
//! The arrays in front of it ([`Tlb`](super::tlb::Tlb)) hold one address space and are emptied when CR3
//! changes; this keeps several, by process-context identifier, and holds the rights as the tables have
//! them, so one entry serves every privilege. An address space is a number that is given once: to
//! forget one is to give its identifier another number (SDM vol. 3A, §4.10).

use super::walk::Rights;
use crate::thrift::discard;
use memory::Zeroable;

/// Entries; a power of two.
const ENTRIES: usize = 8192;
const PCIDS: usize = 4096;
/// Number that no address space has.
const NOBODY: u32 = 0;

/// One page of 4 KiB, perhaps a part of a large one.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    /// Linear address.
    linear: u64,
    /// Guest-physical address.
    pub(crate) gpa: u64,
    /// Size of the page that maps it.
    pub(crate) size: u64,
    space: u32,
    pub(crate) rights: Rights,
    /// The dirty bit is set.
    pub(crate) dirty: bool,
    pub(crate) global: bool,
}

// SAFETY: integers and booleans; zero is a page of nobody's.
unsafe impl Zeroable for Page {}

/// The second-level TLB of one vCPU.
pub(crate) struct Pages {
    entries: Box<[Page]>,
    /// The number of each identifier's address space, or [`NOBODY`].
    spaces: Box<[u32]>,
    /// The number that global pages have.
    global: u32,
    current: u32,
    last: u32,
}

impl Pages {
    pub(crate) fn new() -> Pages {
        let mut pages = Pages {
            entries: memory::zeroed(ENTRIES),
            spaces: vec![NOBODY; PCIDS].into(),
            global: NOBODY,
            current: NOBODY,
            last: NOBODY,
        };
        pages.forget_all(0);
        pages
    }

    /// A number never given before.
    fn fresh(&mut self) -> u32 {
        if self.last == u32::MAX {
            // What is as old as this would look new again.
            self.entries.iter_mut().for_each(|page| page.space = NOBODY);
            self.spaces.fill(NOBODY);
            self.global = 1;
            self.last = 1;
        }
        self.last += 1;
        self.last
    }

    #[inline(always)]
    fn slot(linear: u64, space: u32) -> usize {
        ((linear >> 12) as usize ^ (space as usize).wrapping_mul(0x9e5)) % ENTRIES
    }

    /// What is known of the page of `linear` in the current address space.
    #[inline(always)]
    pub(crate) fn find(&self, linear: u64) -> Option<&Page> {
        let page = linear & !0xfff;
        for space in [self.current, self.global] {
            let entry = &self.entries[Pages::slot(page, space)];
            if entry.linear == page && entry.space == space {
                return Some(entry);
            }
        }
        None
    }

    /// The number of the current address space.
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// The number of an identifier's address space.
    pub(crate) fn space_of(&self, pcid: u64) -> u32 {
        self.spaces[pcid as usize % PCIDS]
    }

    /// Enters what a walk has found for `linear`.
    pub(crate) fn insert(
        &mut self,
        linear: u64,
        gpa: u64,
        size: u64,
        rights: Rights,
        dirty: bool,
        global: bool,
    ) {
        let (linear, gpa) = (linear & !0xfff, gpa & !0xfff);
        let space = if global { self.global } else { self.current };
        self.entries[Pages::slot(linear, space)] = Page { linear, gpa, size, space, rights, dirty, global };
    }

    /// Another address space becomes current; `keep` says that what is known of it is true still.
    pub(crate) fn switch(&mut self, pcid: u64, keep: bool) {
        let pcid = pcid as usize % PCIDS;
        if !keep || self.spaces[pcid] == NOBODY {
            self.spaces[pcid] = self.fresh();
        }
        self.current = self.spaces[pcid];
    }

    /// Forgets what is not global of one address space.
    pub(crate) fn forget_space(&mut self, pcid: u64, current: u64) {
        self.spaces[pcid as usize % PCIDS] = NOBODY;
        self.switch(current, true);
    }

    /// Forgets what is not global of all address spaces.
    pub(crate) fn forget_local(&mut self, current: u64) {
        self.spaces.fill(NOBODY);
        self.switch(current, true);
    }

    /// Forgets everything.
    pub(crate) fn forget_all(&mut self, current: u64) {
        self.spaces.fill(NOBODY);
        self.global = self.fresh();
        self.switch(current, true);
    }

    /// Gives memory back. Everything was forgotten before.
    pub(crate) fn give_back(&mut self) {
        discard(&mut self.entries);
    }

    /// Forgets one page of an address space, and the global one of the same address.
    pub(crate) fn forget_page(&mut self, linear: u64, pcid: u64) {
        let page = linear & !0xfff;
        for space in [self.spaces[pcid as usize % PCIDS], self.global] {
            let entry = &mut self.entries[Pages::slot(page, space)];
            if entry.linear == page {
                entry.space = NOBODY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHTS: Rights = Rights { user: true, writable: true, no_execute: false };

    fn gpa(pages: &Pages, linear: u64) -> Option<u64> {
        pages.find(linear).map(|page| page.gpa)
    }

    #[test]
    fn address_spaces_are_kept_apart_and_come_back() {
        let mut pages = Pages::new();
        pages.switch(1, false);
        pages.insert(0x1000, 0xa000, 4096, RIGHTS, true, false);
        pages.insert(0x8000, 0xf000, 4096, RIGHTS, true, true);
        pages.switch(2, false);
        assert_eq!((gpa(&pages, 0x1000), gpa(&pages, 0x8fff)), (None, Some(0xf000)));
        pages.insert(0x1000, 0xb000, 4096, RIGHTS, true, false);
        pages.switch(1, true);
        assert_eq!(gpa(&pages, 0x1234), Some(0xa000));
        pages.switch(2, false);
        assert_eq!(gpa(&pages, 0x1000), None);
    }

    #[test]
    fn what_is_forgotten_is_gone_and_the_rest_stays() {
        let mut pages = Pages::new();
        for pcid in [1, 2] {
            pages.switch(pcid, false);
            pages.insert(0x1000, 0xa000 + (pcid << 16), 4096, RIGHTS, true, false);
            pages.insert(0x2000, 0xc000, 4096, RIGHTS, true, false);
            pages.insert(0x9000, 0xf000, 4096, RIGHTS, true, true);
        }
        pages.forget_page(0x1000, 2);
        assert_eq!((gpa(&pages, 0x1000), gpa(&pages, 0x2000)), (None, Some(0xc000)));
        pages.forget_space(1, 2);
        assert_eq!(gpa(&pages, 0x2000), Some(0xc000));
        pages.switch(1, true);
        assert_eq!((gpa(&pages, 0x1000), gpa(&pages, 0x9000)), (None, Some(0xf000)));
        pages.forget_local(2);
        assert_eq!((gpa(&pages, 0x2000), gpa(&pages, 0x9000)), (None, Some(0xf000)));
        pages.forget_all(2);
        assert_eq!(gpa(&pages, 0x9000), None);
    }
}
