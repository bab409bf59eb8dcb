//! Which parts of the stream beyond the next expected byte have already come.

use super::seq::Seq;

/// Ranges kept at most; a segment that would need another is dropped and comes again.
const RANGES_MAX: usize = 32;

/// Ranges of sequence numbers, apart from each other and in order.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Vec<(Seq, Seq)>);

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a range that begins after the next expected byte. Returns false when there is no room for it.
    pub(crate) fn insert(&mut self, mut start: Seq, mut end: Seq) -> bool {
        // The ranges that touch the new one are contiguous: replace them by their union.
        let first =
            self.0.iter().position(|&(_, other_end)| !other_end.is_before(start)).unwrap_or(self.0.len());
        let touching =
            self.0[first..].iter().take_while(|&&(other_start, _)| !other_start.is_after(end)).count();
        if touching == 0 {
            if self.0.len() == RANGES_MAX {
                return false;
            }
            self.0.insert(first, (start, end));
            return true;
        }
        let (first_start, _) = self.0[first];
        let (_, last_end) = self.0[first + touching - 1];
        if first_start.is_before(start) {
            start = first_start;
        }
        end = end.max(last_end);
        self.0[first] = (start, end);
        self.0.drain(first + 1..first + touching);
        true
    }

    /// Takes away what the stream has reached, given the new next expected byte. Returns where the stream
    /// goes on after it and the ranges that it joined.
    pub(crate) fn join(&mut self, mut next: Seq) -> Seq {
        let mut joined = 0;
        for &(start, end) in &self.0 {
            if start.is_after(next) {
                break;
            }
            next = next.max(end);
            joined += 1;
        }
        self.0.drain(..joined);
        next
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u32, u32)], base: u32) -> Ranges {
        let mut ranges = Ranges::default();
        for &(start, end) in list {
            assert!(ranges.insert(Seq(base).plus(start), Seq(base).plus(end)));
        }
        ranges
    }

    #[test]
    fn union_is_kept_whatever_the_order() {
        type Case<'a> = (&'a [(u32, u32)], &'a [(u32, u32)]);
        let cases: &[Case<'_>] = &[
            (&[(10, 20)], &[(10, 20)]),
            (&[(10, 20), (30, 40)], &[(10, 20), (30, 40)]),
            (&[(30, 40), (10, 20)], &[(10, 20), (30, 40)]),
            (&[(10, 20), (20, 30)], &[(10, 30)]),
            (&[(20, 30), (10, 20)], &[(10, 30)]),
            (&[(10, 20), (30, 40), (15, 35)], &[(10, 40)]),
            (&[(10, 40), (15, 35)], &[(10, 40)]),
            (&[(15, 35), (10, 40)], &[(10, 40)]),
            (&[(10, 20), (30, 40), (50, 60), (5, 100)], &[(5, 100)]),
            (&[(10, 20), (30, 40), (50, 60), (20, 30)], &[(10, 40), (50, 60)]),
        ];
        for base in [0, u32::MAX - 25] {
            for (inserted, kept) in cases {
                let expected: Vec<_> =
                    kept.iter().map(|&(start, end)| (Seq(base).plus(start), Seq(base).plus(end))).collect();
                assert_eq!(ranges(inserted, base).0, expected, "{inserted:?}");
            }
        }
    }

    #[test]
    fn joining_follows_the_stream() {
        let mut set = ranges(&[(10, 20), (25, 30), (40, 50)], 0);
        assert_eq!(set.join(Seq(5)), Seq(5));
        assert_eq!(set.join(Seq(12)), Seq(20));
        assert_eq!(set.join(Seq(25)), Seq(30));
        assert_eq!(set.join(Seq(60)), Seq(60));
        assert!(set.is_empty());
    }

    #[test]
    fn bounded() {
        let mut set = Ranges::default();
        let taken = (0..1000).filter(|&i| set.insert(Seq(i * 10 + 5), Seq(i * 10 + 6))).count();
        assert_eq!(taken, RANGES_MAX);
        // One that needs no further range is still taken.
        assert!(set.insert(Seq(5), Seq(10)));
    }
}
