//! Sets of pages.

use std::ops::Range;

/// A set of a machine's pages, counted by their offset in [`Ram`](crate::Ram).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    pages: u64,
    words: Vec<u64>,
}

impl PageSet {
    /// The empty set among `pages` pages.
    pub fn new(pages: u64) -> PageSet {
        PageSet { pages, words: vec![0; pages.div_ceil(64) as usize] }
    }

    /// How many pages there are to be in it.
    pub fn capacity(&self) -> u64 {
        self.pages
    }

    /// How many pages are in it.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        self.words.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// Puts a page in; returns whether it was not there.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn insert(&mut self, page: u64) -> bool {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let (word, bit) = (&mut self.words[(page / 64) as usize], 1 << (page % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Puts a run of pages in; those beyond the last are left out.
    pub fn insert_range(&mut self, range: Range<u64>) {
        for page in range.start..range.end.min(self.pages) {
            self.insert(page);
        }
    }

    /// Puts in all that are in `other`, which is among as many pages.
    pub fn insert_all(&mut self, other: &PageSet) {
        debug_assert_eq!(self.pages, other.pages, "sets of one machine");
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Puts in the pages from `first` on whose bits are set, least significant bit first.
    pub(crate) fn insert_words(&mut self, first: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                self.insert(first + index as u64 * 64 + u64::from(rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
    }

    /// The pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs().flatten()
    }

    /// The pages as runs without gaps, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, 0)?;
            let end = self.next(start, u64::MAX).unwrap_or(self.pages);
            at = end;
            Some(start..end)
        })
    }

    /// The first page from `from` on whose bit differs from those of `same`.
    fn next(&self, from: u64, same: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = (*self.words.get(index)? ^ same) & u64::MAX << (from % 64);
        while word == 0 {
            index += 1;
            word = *self.words.get(index)? ^ same;
        }
        let page = index as u64 * 64 + u64::from(word.trailing_zeros());
        (page < self.pages).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_put_in() {
        let mut set = PageSet::new(200);
        assert_eq!(set.runs().next(), None);
        for range in [0..1, 3..5, 62..130, 199..300] {
            set.insert_range(range);
        }
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..1, 3..5, 62..130, 199..200]);
        assert_eq!(set.len(), 1 + 2 + 68 + 1);
        assert_eq!(set.iter().count() as u64, set.len());
        assert!(set.contains(199) && !set.contains(200) && !set.contains(1 << 40));
        assert!(!set.insert(3) && set.insert(2));
        let mut full = PageSet::new(64);
        full.insert_range(0..64);
        assert_eq!(full.runs().map(|run| (run.start, run.end)).collect::<Vec<_>>(), [(0, 64)]);
        let mut words = PageSet::new(130);
        words.insert_words(64, &[1 << 63 | 1, 3]);
        assert_eq!(words.iter().collect::<Vec<_>>(), [64, 127, 128, 129]);
        full = PageSet::new(130);
        full.insert(5);
        full.insert_all(&words);
        assert_eq!(full.len(), 5);
    }
}
