//! Segment registers and descriptors (SDM vol. 3A, §3.4).

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part, as both engines and the saved state hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// Access rights as in bits 8 to 23 of a descriptor's second doubleword: type (0-3), S (4), DPL
    /// (5-6), P (7), AVL (12), L (13), D/B (14), G (15). Zero means unusable (a null selector).
    pub access: u16,
}

/// Bits of [`Segment::access`].
#[allow(missing_docs)]
pub mod access {
    pub const ACCESSED: u16 = 1 << 0;
    /// Data: writable. Code: readable.
    pub const WRITABLE: u16 = 1 << 1;
    pub const READABLE: u16 = 1 << 1;
    /// Data: expands down. Code: conforming.
    pub const EXPAND_DOWN: u16 = 1 << 2;
    pub const CONFORMING: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    /// Code or data, not system.
    pub const NOT_SYSTEM: u16 = 1 << 4;
    pub const PRESENT: u16 = 1 << 7;
    pub const AVL: u16 = 1 << 12;
    pub const LONG: u16 = 1 << 13;
    pub const DEFAULT_BIG: u16 = 1 << 14;
    pub const GRANULARITY: u16 = 1 << 15;
}

/// System descriptor types (SDM vol. 3A, table 3-2); the 64-bit meanings in parentheses.
#[allow(missing_docs)]
pub mod system_type {
    pub const TSS16_AVAILABLE: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS16_BUSY: u16 = 3;
    pub const CALL_GATE16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const INTERRUPT_GATE16: u16 = 6;
    pub const TRAP_GATE16: u16 = 7;
    pub const TSS_AVAILABLE: u16 = 9;
    pub const TSS_BUSY: u16 = 11;
    pub const CALL_GATE: u16 = 12;
    pub const INTERRUPT_GATE: u16 = 14;
    pub const TRAP_GATE: u16 = 15;
}

impl Segment {
    /// Decodes an 8-byte descriptor as loaded through `selector`. For 16-byte system descriptors OR the
    /// upper half of the base in afterwards.
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Segment {
        let access = (descriptor >> 40) as u16 & 0xf0ff;
        let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        Segment {
            base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
            limit: if access & access::GRANULARITY != 0 { limit << 12 | 0xfff } else { limit },
            selector,
            access,
        }
    }

    /// A segment as real mode and virtual-8086 mode have them.
    pub fn real_mode(selector: u16) -> Segment {
        let access = access::PRESENT | access::NOT_SYSTEM | access::WRITABLE | access::ACCESSED;
        Segment { base: (selector as u64) << 4, limit: 0xffff, selector, access }
    }

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }

    /// The four type bits.
    pub fn kind(&self) -> u16 {
        self.access & 0xf
    }

    /// Whether all of the given [`access`] bits are set.
    pub fn has(&self, bits: u16) -> bool {
        self.access & bits == bits
    }

    /// Whether a null selector is loaded, so that any use faults.
    pub fn is_unusable(&self) -> bool {
        self.access & access::PRESENT == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_descriptor_decodes() {
        let code = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
        assert_eq!((code.base, code.limit, code.dpl()), (0, 0xffff_ffff, 0));
        assert!(code.has(access::LONG | access::CODE | access::PRESENT) && !code.has(access::DEFAULT_BIG));
        let data = Segment::from_descriptor(0x2b, 0x12cf_f334_5678_0001);
        assert_eq!((data.base, data.limit, data.dpl()), (0x1234_5678, 0xf_0001 << 12 | 0xfff, 3));
    }
}
