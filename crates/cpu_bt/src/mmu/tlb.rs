//! The software TLB: for each privilege, which pages may be read and written through which host
//! pointers without further ado.
//!
//! A write entry exists only for pages that are RAM, writable, already marked dirty in the page table,
//! hold no watched code, and are in the dirty log if that is on. Anything else misses and takes the
//! slow way, which finds out why.

use super::guess::{Guess, GuessBank, Nowhere};
use super::spaces::KeptPage;
use crate::cpu::Cpu;
use crate::thrift::{end_thrift, fill_thriftily};
use x86::reg::{cr3, cr4};

/// Entries per array; a power of two. A kernel's text and data reach over more than 4 MiB, all of which it uses at once.
pub(crate) const ENTRIES: usize = 2048;
const FETCH_ENTRIES: usize = 256;
const EMPTY: u64 = 1;

/// Which privilege an access has: index of the arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum MmuIndex {
    /// Supervisor that may not touch user pages: SMAP is on and RFLAGS.AC is clear; also implicit
    /// accesses to descriptor tables.
    Kernel = 0,
    /// User.
    User = 1,
    /// Supervisor that may touch user pages.
    KernelAc = 2,
    /// User whose accesses have to be aligned (SDM vol. 3A, §6.15, #AC). These arrays stay empty, so
    /// that every access takes the slow way, which looks; translated code is not executed.
    UserAligned = 3,
}

/// How many there are, and those of them whose arrays are used.
const INDICES: usize = 4;
const FILLED: [MmuIndex; 3] = [MmuIndex::Kernel, MmuIndex::User, MmuIndex::KernelAc];

impl MmuIndex {
    /// Whether accesses have a user's rights.
    #[inline(always)]
    pub(crate) fn is_user(self) -> bool {
        matches!(self, MmuIndex::User | MmuIndex::UserAligned)
    }
}

/// One page: its linear address and its host address. An empty one has a page that belongs elsewhere: see
/// [`none`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) page: u64,
    pub(crate) host: u64,
}

/// A page that code was fetched from.
#[derive(Clone, Copy)]
pub(crate) struct FetchEntry {
    page: u64,
    user: bool,
    /// Guest-physical address of the page.
    pub(crate) gpa: u64,
}

/// What is left after dropping translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing.
    Nothing,
    /// Of code pages, those in the upper half of the address space.
    UpperCode,
    /// Everything but one page.
    OtherPages,
}

/// An empty entry for this index. Its page is aligned and belongs to another index, so no access that looks
/// here, from its first byte to its last, lies in it: translated code takes any distance of less than a
/// page from an entry's page for a hit.
const fn none(index: usize) -> Entry {
    Entry { page: ((index ^ (ENTRIES / 2)) << 12) as u64, host: 0 }
}

fn empty(array: &mut [Entry; ENTRIES]) {
    for (index, entry) in array.iter_mut().enumerate() {
        *entry = none(index);
    }
}

const NO_FETCH: FetchEntry = FetchEntry { page: EMPTY, user: false, gpa: 0 };

/// The arrays of one vCPU.
#[repr(C)]
pub(crate) struct Tlb {
    pub(crate) read: [[Entry; ENTRIES]; INDICES],
    pub(crate) write: [[Entry; ENTRIES]; INDICES],
    /// For each index whose arrays are used, the guesses for reads, then those for writes.
    pub(crate) guesses: [[GuessBank; 2]; FILLED.len()],
    /// Where guesses lead that are none.
    nowhere: Nowhere,
    fetch: [FetchEntry; FETCH_ENTRIES],
    /// By [`MmuIndex`].
    locals: [Locals; INDICES],
    /// Linear addresses between which large pages were entered, page by page: in the lower half of the
    /// address space and in the upper.
    large: [(u64, u64); 2],
    /// Code was fetched from a page in the upper half that is not global.
    local_upper_code: bool,
    /// A global page in the lower half of the address space was entered.
    global_lower: bool,
    /// By [`MmuIndex`], whether any page in the lower half was entered since all were dropped: where SMAP is on, none
    /// is in the supervisor's arrays.
    lower: [bool; INDICES],
    /// Counts whenever something is dropped.
    flushes: u64,
    /// Counts whenever all permissions to write are.
    write_flushes: u64,
    /// Where the last page was entered.
    last: (MmuIndex, usize),
}

/// Which entries of an array are of pages that are not global: the first so many, and how many there
/// were.
#[derive(Clone, Copy)]
struct Locals {
    indices: [u16; LOCALS],
    count: usize,
}

/// Switches between processes are frequent where few pages are touched between them.
const LOCALS: usize = 192;

impl Locals {
    #[inline]
    fn note(&mut self, index: usize) {
        if self.count < LOCALS {
            self.indices[self.count] = index as u16;
        }
        self.count += 1;
    }
}

const NO_LARGE: (u64, u64) = (u64::MAX, 0);

impl Drop for Tlb {
    fn drop(&mut self) {
        self.guesses.iter_mut().flatten().for_each(|bank| end_thrift(&mut bank.entries));
    }
}

impl Tlb {
    /// Makes a value of zeroed memory.
    pub(crate) fn initialise(&mut self) {
        self.read.iter_mut().chain(&mut self.write).for_each(empty);
        self.flush_all();
        let none = Guess::none(&self.nowhere);
        self.guesses.iter_mut().flatten().for_each(|bank| bank.initialise(none));
        self.share_guesses();
    }

    /// Gives back the memory that guesses take, which are forgotten.
    pub(crate) fn give_back_guesses(&mut self) {
        for bank in self.guesses.iter_mut().flatten() {
            bank.forget();
            bank.give_back();
        }
        self.share_guesses();
    }

    /// No guesses take no memory.
    fn share_guesses(&mut self) {
        let none = self.guesses[0][0].none();
        fill_thriftily(none, self.guesses.iter_mut().flatten().map(|bank| &mut bank.entries[..]));
    }

    #[inline(always)]
    pub(crate) fn index(linear: u64) -> usize {
        (linear >> 12) as usize % ENTRIES
    }

    /// Host address for reading `len` bytes, if they lie in one cached page.
    #[inline(always)]
    pub(crate) fn lookup_read(&self, mmu: MmuIndex, linear: u64, len: usize) -> Option<*const u8> {
        let entry = &self.read[mmu as usize][Tlb::index(linear)];
        // The page of the last byte is compared, so an access across pages misses.
        let page = linear.wrapping_add(len as u64 - 1) & !0xfff;
        (entry.page == page).then_some((entry.host | linear & 0xfff) as *const u8)
    }

    /// Host address for writing `len` bytes, if they lie in one cached page.
    #[inline(always)]
    pub(crate) fn lookup_write(&self, mmu: MmuIndex, linear: u64, len: usize) -> Option<*mut u8> {
        let entry = &self.write[mmu as usize][Tlb::index(linear)];
        let page = linear.wrapping_add(len as u64 - 1) & !0xfff;
        (entry.page == page).then_some((entry.host | linear & 0xfff) as *mut u8)
    }

    /// Enters a page, where the index has any.
    pub(crate) fn insert(&mut self, mmu: MmuIndex, linear: u64, host: *mut u8, writable: bool, global: bool) {
        if mmu == MmuIndex::UserAligned {
            return;
        }
        let page = linear & !0xfff;
        let entry = Entry { page, host: host as u64 };
        self.last = (mmu, Tlb::index(linear));
        self.read[mmu as usize][Tlb::index(linear)] = entry;
        if writable {
            self.write[mmu as usize][Tlb::index(linear)] = entry;
        }
        if !global {
            self.locals[mmu as usize].note(Tlb::index(linear));
        }
        self.global_lower |= global && linear >> 63 == 0;
        self.lower[mmu as usize] |= linear >> 63 == 0;
    }

    /// Appends what the arrays hold of the lower half of the address space, where no page is global; false if that
    /// is not known.
    pub(super) fn save_lower(&self, pages: &mut Vec<KeptPage>) -> bool {
        if self.global_lower || FILLED.iter().any(|mmu| self.locals[*mmu as usize].count > LOCALS) {
            return false;
        }
        for mmu in FILLED.map(|mmu| mmu as usize) {
            let locals = &self.locals[mmu];
            for &index in &locals.indices[..locals.count] {
                let (read, write) = (self.read[mmu][index as usize], self.write[mmu][index as usize]);
                let holds = read.host != 0 && read.page >> 63 == 0;
                // A page that was entered twice stands there twice in a row, if at all.
                if holds && pages.last().is_none_or(|last| (last.mmu, last.index) != (mmu as u8, index)) {
                    pages.push(KeptPage { mmu: mmu as u8, index, read, write });
                }
            }
        }
        true
    }

    /// Puts pages back, those that may be written as such if `writable`.
    pub(super) fn restore(&mut self, pages: &[KeptPage], writable: bool) {
        for page in pages {
            self.read[page.mmu as usize][page.index as usize] = page.read;
            if writable && page.write.host != 0 && page.write.page >> 63 == 0 {
                self.write[page.mmu as usize][page.index as usize] = page.write;
            }
            self.locals[page.mmu as usize].note(page.index as usize);
            self.lower[page.mmu as usize] = true;
        }
    }

    /// How often all permissions to write were dropped.
    pub(crate) fn write_flushes(&self) -> u64 {
        self.write_flushes
    }

    /// Notes that a page entered is part of a large page of `size` bytes, so that INVLPG anywhere in it
    /// drops all of it.
    pub(crate) fn note_large(&mut self, linear: u64, size: u64) {
        let range = &mut self.large[(linear >> 63) as usize];
        let start = linear & !(size - 1);
        *range = (range.0.min(start), range.1.max(start + (size - 1)));
    }

    #[inline(always)]
    pub(crate) fn lookup_fetch(&self, linear: u64, user: bool) -> Option<u64> {
        let entry = &self.fetch[(linear >> 12) as usize % FETCH_ENTRIES];
        (entry.page == linear & !0xfff && entry.user == user).then_some(entry.gpa)
    }

    pub(crate) fn insert_fetch(&mut self, linear: u64, user: bool, gpa: u64, global: bool) {
        self.local_upper_code |= !global && linear >> 63 != 0;
        self.global_lower |= global && linear >> 63 == 0;
        let entry = FetchEntry { page: linear & !0xfff, user, gpa: gpa & !0xfff };
        self.fetch[(linear >> 12) as usize % FETCH_ENTRIES] = entry;
    }

    /// How often something was dropped.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes
    }

    fn clear(&mut self, mmu: MmuIndex) {
        self.flushes += 1;
        empty(&mut self.read[mmu as usize]);
        empty(&mut self.write[mmu as usize]);
        self.locals[mmu as usize].count = 0;
        self.guesses[mmu as usize].iter_mut().for_each(GuessBank::forget);
        self.lower[mmu as usize] = false;
    }

    /// Drops the data page that was entered last, so that there is never more than one.
    #[cold]
    pub(crate) fn drop_last(&mut self) {
        let (mmu, index) = self.last;
        self.flushes += 1;
        self.read[mmu as usize][index] = none(index);
        self.write[mmu as usize][index] = none(index);
        self.guesses[mmu as usize].iter_mut().for_each(GuessBank::forget);
    }

    /// Drops everything.
    pub(crate) fn flush_all(&mut self) {
        for mmu in FILLED {
            self.clear(mmu);
        }
        self.fetch.fill(NO_FETCH);
        self.large = [NO_LARGE; 2];
        self.local_upper_code = false;
        self.global_lower = false;
    }

    /// Drops all pages that are not global, and perhaps some that are.
    pub(crate) fn flush_local(&mut self) -> Left {
        self.flushes += 1;
        for mmu in FILLED {
            let locals = &mut self.locals[mmu as usize];
            if locals.count > LOCALS {
                self.clear(mmu);
                continue;
            }
            for index in &locals.indices[..std::mem::take(&mut locals.count)] {
                self.read[mmu as usize][*index as usize] = none(*index as usize);
                self.write[mmu as usize][*index as usize] = none(*index as usize);
            }
            self.guesses[mmu as usize].iter_mut().for_each(GuessBank::forget);
        }
        // The kernel's code is global, and it would be a pity to look all of it up again.
        if self.local_upper_code {
            self.local_upper_code = false;
            self.fetch.fill(NO_FETCH);
            return Left::Nothing;
        }
        for entry in self.fetch.iter_mut().filter(|entry| entry.page >> 63 == 0) {
            *entry = NO_FETCH;
        }
        Left::UpperCode
    }

    /// Whether `linear` may lie in a large page.
    pub(crate) fn is_large(&self, linear: u64) -> bool {
        let large = self.large[(linear >> 63) as usize];
        (large.0..=large.1).contains(&linear)
    }

    /// Drops one page, which is not large.
    pub(crate) fn flush_page(&mut self, linear: u64) -> Left {
        self.flushes += 1;
        let page = linear & !0xfff;
        for entries in self.read.iter_mut().chain(&mut self.write) {
            let entry = &mut entries[Tlb::index(linear)];
            if entry.page == page {
                *entry = none(Tlb::index(linear));
            }
        }
        self.forget_guesses(page);
        self.fetch[(linear >> 12) as usize % FETCH_ENTRIES] = NO_FETCH;
        Left::OtherPages
    }

    /// Drops the permissions to write to the page at this host address without report.
    pub(crate) fn revoke_writes(&mut self, host: u64) {
        self.flushes += 1;
        self.write_flushes += 1;
        for mmu in FILLED {
            for (index, entry) in self.write[mmu as usize].iter_mut().enumerate() {
                if entry.host == host {
                    *entry = none(index);
                }
            }
        }
        for [_, write] in &mut self.guesses {
            write.forget_host(host);
        }
    }

    /// Drops all permissions to write without report.
    pub(crate) fn flush_writes(&mut self) {
        self.flushes += 1;
        self.write_flushes += 1;
        for entries in &mut self.write {
            empty(entries);
        }
        for [_, write] in &mut self.guesses {
            write.forget();
        }
    }

    /// Forgets the guesses of a page: the processor does so with all it knows of a page that faults
    /// (SDM vol. 3A, §4.10.4.1).
    pub(crate) fn forget_guesses(&mut self, linear: u64) {
        self.flushes += 1;
        let lower = linear >> 63 == 0;
        for (banks, any_lower) in self.guesses.iter_mut().zip(self.lower) {
            if any_lower || !lower {
                banks.iter_mut().for_each(|bank| bank.forget_page(linear & !0xfff));
            }
        }
    }
}

impl Cpu {
    /// Forgets all translations of linear addresses.
    pub(crate) fn flush_tlb_all(&mut self) {
        self.counts.tlb_flushes_all.add();
        self.pages.forget_all(self.pcid());
        self.tlb.flush_all();
        self.forget_code_addresses(Left::Nothing, 0);
    }

    /// The process-context identifier of the current address space.
    fn pcid(&self) -> u64 {
        if self.sys.cr4 & cr4::PCIDE != 0 { self.sys.cr3 & cr3::PCID } else { 0 }
    }

    /// Forgets the translations of pages that are not global, in all address spaces.
    pub(crate) fn flush_tlb_local(&mut self) {
        self.pages.forget_local(self.pcid());
        self.leave_address_space();
    }

    /// Forgets the translations of pages that are not global, in one address space.
    pub(crate) fn flush_tlb_space(&mut self, pcid: u64) {
        self.pages.forget_space(pcid, self.pcid());
        if pcid == self.pcid() {
            self.leave_address_space();
        }
    }

    /// Goes to the address space that CR3 names now; `keep` says that what is known of it is true still.
    pub(crate) fn switch_tlb(&mut self, keep: bool) {
        let stale = !keep && self.pages.space_of(self.pcid()) == self.pages.current();
        if self.sys.cr4 & cr4::PCIDE != 0 && !stale {
            self.keep_space();
        }
        self.pages.switch(self.pcid(), keep);
        self.leave_address_space();
        if !self.vm.options.stress.flush_at_switch && !self.vm.options.stress.one_tlb_entry {
            self.return_to_space();
        }
    }

    /// Empties what holds the current address space only.
    fn leave_address_space(&mut self) {
        self.counts.tlb_flushes_local.add();
        if self.vm.options.stress.flush_at_switch {
            self.forget_translations();
            return self.flush_tlb_all();
        }
        let left = self.tlb.flush_local();
        self.forget_code_addresses(left, 0);
    }

    /// Forgets the translation of the page of `linear`, in the current address space and where it is
    /// global.
    pub(crate) fn flush_tlb_page(&mut self, linear: u64) {
        if self.tlb.is_large(linear) {
            return self.flush_tlb_all();
        }
        self.counts.tlb_flushes_page.add();
        self.pages.forget_page(linear, self.pcid());
        let left = self.tlb.flush_page(linear);
        self.forget_code_addresses(left, linear);
    }

    /// Forgets the translation of the page of `linear` in another address space.
    pub(crate) fn flush_tlb_page_of(&mut self, linear: u64, pcid: u64) {
        match self.tlb.is_large(linear) {
            true => self.flush_tlb_space(pcid),
            false => {
                self.spaces.forget(self.pages.space_of(pcid));
                self.pages.forget_page(linear, pcid);
            }
        }
    }

    fn forget_code_addresses(&mut self, left: Left, linear: u64) {
        match left {
            Left::Nothing => {
                self.blocks.forget_addresses();
                self.jit.forget_pages();
            }
            Left::UpperCode => {
                self.blocks.forget_half(0);
                self.jit.forget_lower_pages();
            }
            Left::OtherPages => {
                self.blocks.forget_half(linear);
                self.jit.forget_page(linear);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlb() -> Box<Tlb> {
        let mut boxed = memory::zeroed_box::<Tlb>();
        // SAFETY: integers, for which zero is a value; `initialise` makes the rest one.
        unsafe {
            (*boxed.as_mut_ptr()).initialise();
            boxed.assume_init()
        }
    }

    #[test]
    fn guesses_of_a_page_are_forgotten_in_all_banks_that_may_have_it() {
        let mut tlb = tlb();
        let (host, lower, upper) = (0x7000_1000 as *mut u8, 0x9000u64, 0xffff_8000_0000_9000u64);
        let guess = |tlb: &mut Tlb, mmu: MmuIndex, linear: u64| {
            tlb.insert(mmu, linear, host, true, false);
            let bank = &mut tlb.guesses[mmu as usize][0];
            bank.entries[3] = Guess { page: linear, addend: (host as u64).wrapping_sub(linear) };
            (bank.filled[0], bank.count) = (3 * size_of::<Guess>() as u32, 1);
        };
        for mmu in FILLED {
            for linear in [upper, lower] {
                guess(&mut tlb, mmu, linear);
                tlb.flush_page(linear ^ 0x1000);
                assert_eq!(tlb.guesses[mmu as usize][0].entries[3].page, linear);
                tlb.flush_page(linear);
                assert_ne!(tlb.guesses[mmu as usize][0].entries[3].page, linear, "{mmu:?}");
            }
            // Also one that comes back with its address space.
            guess(&mut tlb, mmu, lower);
            let mut kept = Vec::new();
            assert!(tlb.save_lower(&mut kept));
            tlb.flush_all();
            tlb.restore(&kept, true);
            let bank = &mut tlb.guesses[mmu as usize][0];
            bank.entries[3] = Guess { page: lower, addend: 0 };
            (bank.filled[0], bank.count) = (3 * size_of::<Guess>() as u32, 1);
            tlb.flush_page(lower);
            assert_ne!(tlb.guesses[mmu as usize][0].entries[3].page, lower, "{mmu:?}");
            tlb.flush_all();
        }
    }

    #[test]
    fn permissions_to_write_a_page_go_wherever_it_is_mapped_and_no_others() {
        let mut tlb = tlb();
        let (page, other) = (0x7000_1000 as *mut u8, 0x7000_2000 as *mut u8);
        let places = [(MmuIndex::Kernel, 0x5000), (MmuIndex::User, 0x9000), (MmuIndex::KernelAc, 0xa000)];
        for (mmu, linear) in places {
            tlb.insert(mmu, linear, page, true, false);
            tlb.insert(mmu, linear + 0x10_0000, other, true, false);
        }
        let bank = &mut tlb.guesses[MmuIndex::User as usize][1];
        for (number, linear, host) in [(3usize, 0x9000u64, page), (4, 0x10_9000, other)] {
            bank.entries[number] = Guess { page: linear, addend: (host as u64).wrapping_sub(linear) };
            bank.filled[bank.count as usize] = (number * size_of::<Guess>()) as u32;
            bank.count += 1;
        }
        let before = (tlb.flushes(), tlb.write_flushes());
        tlb.revoke_writes(page as u64);
        assert_eq!((tlb.flushes(), tlb.write_flushes()), (before.0 + 1, before.1 + 1));
        for (mmu, linear) in places {
            assert_eq!(tlb.lookup_write(mmu, linear, 8), None);
            assert_eq!(tlb.lookup_read(mmu, linear, 8), Some(page.cast_const()));
            assert_eq!(tlb.lookup_write(mmu, linear + 0x10_0000, 8), Some(other));
        }
        let bank = &tlb.guesses[MmuIndex::User as usize][1];
        assert!(bank.entries[3].page != 0x9000 && bank.entries[4].page == 0x10_9000);
    }
}
