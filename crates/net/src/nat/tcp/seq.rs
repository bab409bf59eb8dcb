//! Sequence numbers: 32 bits that wrap (RFC 9293 §3.4).

/// A TCP sequence number. Comparisons hold for numbers less than 2³¹ apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    /// Returns the number `n` further on.
    pub(crate) fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// Returns the number `n` before.
    pub(crate) fn minus(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// Returns how far this is after `earlier`; meaningful when it is not before it.
    pub(crate) fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    pub(crate) fn is_before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    pub(crate) fn is_after(self, other: Self) -> bool {
        other.is_before(self)
    }

    /// Tells whether `low <= self <= high`, for `low <= high`.
    pub(crate) fn is_within(self, low: Self, high: Self) -> bool {
        self.since(low) <= high.since(low)
    }

    pub(crate) fn max(self, other: Self) -> Self {
        if self.is_before(other) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        for base in [0, 1, 0x7fff_fff0, 0x8000_0000, u32::MAX - 3, u32::MAX] {
            let low = Seq(base);
            let high = low.plus(10);
            assert!(low.is_before(high) && high.is_after(low) && !low.is_before(low));
            assert_eq!(high.since(low), 10);
            assert_eq!(high.minus(10), low);
            assert_eq!(low.max(high), high);
            assert!(
                low.plus(5).is_within(low, high) && low.is_within(low, high) && high.is_within(low, high)
            );
            assert!(!low.minus(1).is_within(low, high) && !high.plus(1).is_within(low, high));
        }
    }
}
