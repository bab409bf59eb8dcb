//! Stacks as far transfers and interrupts see them: perhaps not the current one, and not committed
//! before everything has been checked.

use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use crate::mmu::tlb::MmuIndex;
use crate::regs::RSP;
use x86::Segment;
use x86::paging::is_canonical;
use x86::reg::{cr4, rflags};
use x86::segment::access;
use x86::state::seg;

/// A stack that is being pushed to or popped from. The processor's own changes only by
/// [`Cpu::commit_stack`].
#[derive(Clone, Copy)]
pub(super) struct Stack {
    /// Its segment, for base and limit (outside 64-bit mode).
    pub(super) segment: Segment,
    /// The stack pointer.
    pub(super) sp: u64,
    /// Size of the stack pointer: 16, 32 or 64 bits.
    pub(super) bits: u8,
    /// With which privilege it is accessed.
    pub(super) mmu: MmuIndex,
    /// What an access outside the segment or at a non-canonical address raises.
    pub(super) fault: Fault,
}

impl Stack {
    /// Size of the stack pointer in a segment, outside 64-bit mode.
    pub(super) fn bits_of(segment: &Segment) -> u8 {
        if segment.has(access::DEFAULT_BIG) { 32 } else { 16 }
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Moves the stack pointer without access.
    pub(super) fn skip(&mut self, bytes: u64) {
        let mask = self.mask();
        self.sp = self.sp & !mask | self.sp.wrapping_add(bytes) & mask;
    }

    /// The linear address of `len` bytes at offset `sp` of the stack.
    fn linear(&self, len: u64, write: bool, long: bool) -> Result<u64> {
        let offset = self.sp & self.mask();
        if self.bits == 64 {
            return if is_canonical(offset) { Ok(offset) } else { Err(self.fault) };
        }
        let segment = &self.segment;
        let (limit, last) = (segment.limit as u64, offset + len - 1);
        let inside = match !segment.has(access::CODE) && segment.has(access::EXPAND_DOWN) {
            false => last <= limit,
            true => offset > limit && last <= if self.bits == 32 { 0xffff_ffff } else { 0xffff },
        };
        let usable = !segment.is_unusable() && (!write || segment.has(access::WRITABLE));
        if !inside || !usable {
            return Err(self.fault);
        }
        let linear = segment.base.wrapping_add(offset);
        Ok(if long { linear & 0xffff_ffff } else { linear as u32 as u64 })
    }
}

impl Cpu {
    /// The TLB arrays for accesses at privilege `cpl` (SDM vol. 3A, §4.6.1).
    pub(super) fn mmu_of(&self, cpl: u8) -> MmuIndex {
        let smap = self.sys.cr4 & cr4::SMAP != 0 && !self.regs.flag(rflags::AC);
        match cpl {
            3 => self.user_mmu(),
            _ if smap => MmuIndex::Kernel,
            _ => MmuIndex::KernelAc,
        }
    }

    /// The current stack.
    pub(super) fn current_stack(&self) -> Stack {
        Stack {
            segment: self.regs.seg[seg::SS],
            sp: self.regs.r[RSP],
            bits: self.mode.stack_bits,
            mmu: self.mode.data,
            fault: Fault::SS0,
        }
    }

    /// Makes the stack pointer that of `stack`.
    pub(super) fn commit_stack(&mut self, stack: &Stack) {
        let mask = stack.mask();
        self.regs.r[RSP] = match stack.bits {
            // Outside 64-bit mode the upper half of RSP is undefined; it is kept zero.
            16 => self.regs.r[RSP] & 0xffff_0000 | stack.sp & mask,
            _ => stack.sp & mask,
        };
    }

    /// Pushes the low `size` bytes of `value`.
    pub(super) fn push_to(&mut self, stack: &mut Stack, size: u8, value: u64) -> Result<()> {
        let before = stack.sp;
        stack.skip((size as u64).wrapping_neg());
        let linear = match stack.linear(size as u64, true, self.mode.long) {
            Ok(linear) => linear,
            Err(fault) => {
                stack.sp = before;
                return Err(fault);
            }
        };
        match size {
            2 => self.write_as(linear, value as u16, stack.mmu),
            4 => self.write_as(linear, value as u32, stack.mmu),
            _ => self.write_as(linear, value, stack.mmu),
        }
    }

    /// Pops `size` bytes.
    pub(super) fn pop_from(&mut self, stack: &mut Stack, size: u8) -> Result<u64> {
        let linear = stack.linear(size as u64, false, self.mode.long)?;
        let value = match size {
            2 => self.read_as::<u16>(linear, stack.mmu)? as u64,
            4 => self.read_as::<u32>(linear, stack.mmu)? as u64,
            _ => self.read_as::<u64>(linear, stack.mmu)?,
        };
        stack.skip(size as u64);
        Ok(value)
    }

    /// Reads with the privilege of `mmu`.
    pub(super) fn read_as<T: Int>(&mut self, linear: u64, mmu: MmuIndex) -> Result<T> {
        if let Some(ptr) = self.tlb.lookup_read(mmu, linear, T::BYTES) {
            // SAFETY: a TLB entry maps a whole page of RAM.
            return Ok(unsafe { T::load(ptr) });
        }
        let mut bytes = [0; 8];
        self.read_bytes_as(linear, &mut bytes[..T::BYTES], mmu)?;
        Ok(T::from_u64(u64::from_le_bytes(bytes)))
    }

    /// Writes with the privilege of `mmu`.
    pub(super) fn write_as<T: Int>(&mut self, linear: u64, value: T, mmu: MmuIndex) -> Result<()> {
        if let Some(ptr) = self.tlb.lookup_write(mmu, linear, T::BYTES) {
            // SAFETY: a TLB entry maps a whole page of RAM.
            unsafe { T::store(ptr, value) };
            return Ok(());
        }
        self.write_bytes_as(linear, &value.to_u64().to_le_bytes()[..T::BYTES], mmu)
    }

    /// Reads a system structure (descriptor table, task state) at `base + offset`: with supervisor
    /// privilege, whatever the present one is.
    pub(super) fn read_system<T: Int>(&mut self, base: u64, offset: u64) -> Result<T> {
        let linear = self.wrap_linear(base.wrapping_add(offset));
        self.read_as(linear, self.implicit_mmu())
    }

    /// Writes a system structure.
    pub(super) fn write_system<T: Int>(&mut self, base: u64, offset: u64, value: T) -> Result<()> {
        let linear = self.wrap_linear(base.wrapping_add(offset));
        self.write_as(linear, value, self.implicit_mmu())
    }

    /// Linear addresses have 32 bits outside long mode.
    pub(super) fn wrap_linear(&self, linear: u64) -> u64 {
        if self.mode.long { linear } else { linear & 0xffff_ffff }
    }
}
