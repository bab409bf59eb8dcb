//! A byte string read as a script.

/// What is left of a script. Every reader gives `None` at the end.
pub(super) struct Script<'a>(pub(super) &'a [u8]);

impl Script<'_> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn word(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(super) fn dword(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn quad(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A duration in nanoseconds: mostly of the size at which devices act, at times up to ten thousand years
    /// short of a clock's end.
    pub(super) fn duration(&mut self) -> Option<u64> {
        let (exponent, mantissa) = (self.byte()? % 56, self.byte()?);
        Some((mantissa as u64) << exponent >> 4)
    }

    /// Up to eight bytes in one of the sizes that a bus carries.
    pub(super) fn access(&mut self) -> Option<([u8; 8], usize)> {
        let len = 1 << (self.byte()? & 3);
        let mut data = [0; 8];
        for byte in &mut data[..len] {
            *byte = self.byte()?;
        }
        Some((data, len))
    }
}
