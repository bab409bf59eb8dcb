//! Guesses of which page an access goes to.
//!
//! Translated code that accesses memory expects the page that it met the last time at the same place:
//! one comparison, and an addend that does not depend on the address. Each guess is a copy of a soft
//! TLB entry of the same privilege and direction, and is forgotten whenever such entries are.

use crate::thrift::discard;
use std::hash::{BuildHasher, Hasher};

/// Guesses of a bank; a power of two.
pub(crate) const GUESSES: usize = 4096;
/// How many filled guesses of a bank are remembered one by one.
const FILLED: usize = 1024;
/// Misses after which the time is looked at.
pub(crate) const MISSES: u32 = 64;
/// Checks after which a guess that is counted was right often enough. A wrong guess costs as much as so many accesses
/// by way of the soft TLB cost more than by a guess.
const CHECKS: u32 = 28 * MISSES;
/// The lowest byte of what stands in place of a page where nothing is guessed. Pages have 0 there. It keeps the
/// lower bits, for the distance from it tells whether an address is aligned.
pub(crate) const EMPTY: u8 = 0x40;

/// A page, and what added to a linear address in it makes the host address.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Guess {
    pub(crate) page: u64,
    pub(crate) addend: u64,
}

impl Guess {
    /// No guess; leads to `nowhere`, which never moves. Its page is a number that ends with [`EMPTY`], chosen by lot. An
    /// address in the page behind it is not canonical, but would be taken for a hit, and lead to `nowhere` instead of
    /// raising an exception. There are 2^52 such pages; nobody finds it.
    pub(crate) fn none(nowhere: &Nowhere) -> Guess {
        let lot = std::hash::RandomState::new().build_hasher().finish();
        // Bits 63 and 62 differ, so nothing within a page of it is canonical.
        let page = 1 << 63 | lot >> 2 & !0xfff | EMPTY as u64;
        Guess { page, addend: (std::ptr::from_ref(nowhere) as u64).wrapping_sub(page) }
    }
}

/// A page behind no address. As aligned as any instruction insists on.
#[repr(C, align(64))]
pub(crate) struct Nowhere([u8; 4096]);

/// The guesses for one privilege and direction.
#[repr(C, align(64))]
pub(crate) struct GuessBank {
    pub(crate) entries: [Guess; GUESSES],
    /// Counts down how often the guess was wrong; below zero it is looked at how often that is.
    pub(crate) misses: [u32; GUESSES],
    /// Counts down how often it was made, where that is counted.
    pub(crate) checks: [u32; GUESSES],
    /// When both were last looked at, in host cycles.
    stamps: [u64; GUESSES],
    /// For which access that was.
    accesses: [u64; GUESSES],
    /// Byte offsets of guesses that are not empty, as far as there is room.
    pub(crate) filled: [u32; FILLED],
    /// Addends of pages that were looked up; of no meaning between traces.
    pub(crate) looked_up: [u64; GUESSES],
    /// No guess.
    none: Guess,
    /// How many those are; more than there is room for means that all may be filled.
    pub(crate) count: u32,
}

impl GuessBank {
    pub(crate) const FILLED: u32 = FILLED as u32;

    /// Makes a value of zeroed memory, of which the entries are set to `none` by the caller.
    pub(crate) fn initialise(&mut self, none: Guess) {
        self.none = none;
    }

    /// No guess.
    pub(crate) fn none(&self) -> Guess {
        self.none
    }

    /// Gives memory back to the host, but for that of the entries. All guesses are forgotten.
    pub(crate) fn give_back(&mut self) {
        discard(&mut self.misses);
        discard(&mut self.checks);
        discard(&mut self.stamps);
        discard(&mut self.accesses);
        discard(&mut self.filled);
        discard(&mut self.looked_up);
    }

    /// Forgets all.
    #[inline]
    pub(crate) fn forget(&mut self) {
        let empty = self.none;
        match std::mem::take(&mut self.count) as usize {
            count @ 0..=FILLED => {
                for &offset in &self.filled[..count] {
                    self.entries[offset as usize / size_of::<Guess>()] = empty;
                }
            }
            _ => self.entries.fill(empty),
        }
    }

    /// Forgets one page.
    pub(crate) fn forget_page(&mut self, page: u64) {
        let count = self.count as usize;
        if count > FILLED {
            return self.forget();
        }
        let empty = self.none;
        for &offset in &self.filled[..count] {
            let guess = &mut self.entries[offset as usize / size_of::<Guess>()];
            if guess.page == page {
                // It stays among the filled: it may be filled again.
                *guess = empty;
            }
        }
    }

    /// Forgets the page at this host address, whatever linear addresses lead to it.
    pub(crate) fn forget_host(&mut self, host: u64) {
        let (count, empty) = (self.count as usize, self.none);
        let forget = |guess: &mut Guess| {
            if guess.page.wrapping_add(guess.addend) == host {
                *guess = empty;
            }
        };
        match count {
            0..=FILLED => self.filled[..count]
                .iter()
                .for_each(|&offset| forget(&mut self.entries[offset as usize / size_of::<Guess>()])),
            _ => self.entries.iter_mut().for_each(forget),
        }
    }

    /// Looks at a guess only after it was wrong many more times.
    pub(crate) fn ask_seldom(&mut self, index: usize) {
        self.misses[index] = 64 * MISSES;
    }

    /// Counts anew how often a guess is wrong, and how often it is made, on behalf of `access`. Returns how many host
    /// cycles ago it was done so before, and whether for the same access.
    pub(crate) fn count_anew(&mut self, index: usize, now: u64, access: u64) -> (u64, bool) {
        self.misses[index] = MISSES - 1;
        self.checks[index] = CHECKS;
        let before = std::mem::replace(&mut self.stamps[index], now);
        let same = std::mem::replace(&mut self.accesses[index], access) == access;
        (now.wrapping_sub(before), same)
    }
}
