//! Descriptor tables: finding, reading and marking descriptors (SDM vol. 3A, §3.4 and §3.5).

use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use x86::segment::{Segment, access, system_type};
use x86::state::seg;
use x86::{Vector, paging::is_canonical};

/// A descriptor as read from a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// Linear address of its first byte.
    pub(super) address: u64,
    /// Its first eight bytes.
    pub(super) raw: u64,
    /// The selector that it was found by.
    pub(super) selector: u16,
}

impl Descriptor {
    /// The segment it describes.
    pub(super) fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.raw)
    }

    /// The fault `vector` with this descriptor's selector as error code.
    pub(super) fn fault(&self, vector: Vector) -> Fault {
        Fault::with_code(vector, self.selector & !3)
    }
}

/// A call, interrupt, trap or task gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    pub(super) kind: u16,
    pub(super) dpl: u8,
    pub(super) present: bool,
    pub(super) selector: u16,
    pub(super) offset: u64,
    /// Parameters to copy (call gates), or interrupt stack table index (64-bit interrupt gates).
    pub(super) extra: u8,
}

impl Gate {
    /// Decodes a gate; `high` is the upper half of a 16-byte one.
    pub(super) fn decode(raw: u64, high: u64) -> Gate {
        Gate {
            kind: (raw >> 40 & 0x1f) as u16,
            dpl: (raw >> 45 & 3) as u8,
            present: raw >> 47 & 1 != 0,
            selector: (raw >> 16) as u16,
            offset: raw & 0xffff | raw >> 32 & 0xffff_0000 | high << 32,
            extra: (raw >> 32 & 0x1f) as u8,
        }
    }

    /// Whether it is one of the 16-bit kinds, whose offset has 16 bits.
    pub(super) fn is_16(&self) -> bool {
        self.kind & 8 == 0
    }
}

/// Whether a selector is null: refers to the GDT's first entry.
pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The requested privilege level of a selector.
pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

impl Cpu {
    /// Where the descriptor of `selector` is, if `len` bytes of it are inside its table.
    fn descriptor_address(&self, selector: u16, len: u64) -> Option<u64> {
        let offset = (selector & !7) as u64;
        let (base, limit) = match selector & 4 {
            0 => (self.sys.gdtr.base, self.sys.gdtr.limit as u64),
            _ if self.sys.ldtr.is_unusable() => return None,
            _ => (self.sys.ldtr.base, self.sys.ldtr.limit as u64),
        };
        (offset + len - 1 <= limit).then(|| self.wrap_linear(base.wrapping_add(offset)))
    }

    /// Reads the descriptor of a selector that is not null; `None` when it is outside its table.
    pub(super) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>> {
        let Some(address) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let raw = self.read_system::<u64>(address, 0)?;
        Ok(Some(Descriptor { address, raw, selector }))
    }

    /// Reads the descriptor of a selector; outside its table the fault is `vector` with the selector.
    pub(super) fn descriptor(&mut self, selector: u16, vector: Vector) -> Result<Descriptor> {
        self.find_descriptor(selector)?.ok_or(Fault::with_code(vector, selector & !3))
    }

    /// Reads the upper half of a 16-byte system descriptor of long mode.
    pub(super) fn descriptor_high(&mut self, low: &Descriptor, vector: Vector) -> Result<u64> {
        if self.descriptor_address(low.selector, 16).is_none() {
            return Err(low.fault(vector));
        }
        self.read_system::<u64>(low.address, 8)
    }

    /// Reads an LDT or TSS descriptor whole: in long mode with the upper half of its base.
    pub(super) fn system_segment(&mut self, low: &Descriptor, vector: Vector) -> Result<Segment> {
        let mut segment = low.segment();
        if self.mode.long {
            let high = self.descriptor_high(low, vector)?;
            segment.base |= high << 32;
            if high >> 40 & 0x1f != 0 || !is_canonical(segment.base) {
                return Err(low.fault(vector));
            }
        }
        Ok(segment)
    }

    /// Reads a call gate: 16 bytes in long mode.
    pub(super) fn call_gate(&mut self, low: &Descriptor) -> Result<Gate> {
        if !self.mode.long {
            let mut gate = Gate::decode(low.raw, 0);
            if gate.is_16() {
                gate.offset &= 0xffff;
            }
            return Ok(gate);
        }
        let high = self.descriptor_high(low, Vector::GeneralProtection)?;
        // The type field of the upper half has to be zero (SDM vol. 3A, §5.8.3.1).
        if high >> 40 & 0x1f != 0 {
            return Err(low.fault(Vector::GeneralProtection));
        }
        Ok(Gate::decode(low.raw, high))
    }

    /// Sets the accessed bit of a code or data descriptor and returns the segment with it set.
    pub(super) fn mark_accessed(&mut self, descriptor: &Descriptor) -> Result<Segment> {
        let mut segment = descriptor.segment();
        if !segment.has(access::ACCESSED) {
            segment.access |= access::ACCESSED;
            self.write_system(descriptor.address, 5, segment.access as u8)?;
        }
        Ok(segment)
    }

    /// Sets or clears the busy bit of a TSS descriptor.
    pub(super) fn mark_busy(&mut self, descriptor: &Descriptor, busy: bool) -> Result<()> {
        let old = (descriptor.raw >> 40) as u8;
        let bit = (system_type::TSS_BUSY ^ system_type::TSS_AVAILABLE) as u8;
        let new = if busy { old | bit } else { old & !bit };
        self.write_system(descriptor.address, 5, new)
    }

    /// The present privilege level.
    #[inline]
    pub(super) fn cpl(&self) -> u8 {
        self.mode.cpl
    }

    /// #GP(0) unless at privilege level 0 (real mode is).
    #[inline]
    pub(super) fn require_cpl0(&self) -> Result<()> {
        if self.mode.cpl == 0 { Ok(()) } else { Err(Fault::GP0) }
    }

    /// #UD in real-address and virtual-8086 mode.
    pub(super) fn require_protected(&self) -> Result<()> {
        if self.mode.is_real_like() { Err(Fault::UNDEFINED) } else { Ok(()) }
    }

    /// Selector of the code segment.
    pub(super) fn cs_selector(&self) -> u16 {
        self.regs.seg[seg::CS].selector
    }
}
