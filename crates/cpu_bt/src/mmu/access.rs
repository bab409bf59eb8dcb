//! Data accesses at linear addresses.
//!
//! The fast way is a TLB hit inside one page. The slow way translates, splits what crosses a page,
//! reaches devices, and reports writes to watched pages.

use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use crate::mmu::tlb::MmuIndex;
use crate::mmu::walk::{Access, Translation};
use crate::options::Jit;
use crate::regs::FLAT;
use memory::PAGE_SIZE;
use x86::Vector;
use x86::reg::rflags;
use x86::segment::access as rights;
use x86::state::seg;

/// Where the bytes of a page are.
enum Place {
    Ram(*mut u8),
    Device(u64),
}

/// Where the two parts of an access across pages are.
struct Across {
    /// How many bytes lie in the first page.
    here: usize,
    first: *mut u8,
    second: *mut u8,
}

/// Whether an access of `len` bytes, at least one, goes beyond its page.
pub(crate) fn crosses(linear: u64, len: usize) -> bool {
    linear % PAGE_SIZE + len as u64 > PAGE_SIZE
}

impl Cpu {
    // ---- explicit accesses at the present privilege ----

    /// Reads an integer.
    #[inline(always)]
    pub(crate) fn read<T: Int>(&mut self, linear: u64) -> Result<T> {
        match self.tlb.lookup_read(self.mode.data, linear, T::BYTES) {
            // SAFETY: a TLB entry maps a whole page of RAM.
            Some(ptr) => Ok(unsafe { T::load(ptr) }),
            None => self.read_slow(linear, self.mode.data),
        }
    }

    /// Writes an integer.
    #[inline(always)]
    pub(crate) fn write<T: Int>(&mut self, linear: u64, value: T) -> Result<()> {
        match self.tlb.lookup_write(self.mode.data, linear, T::BYTES) {
            Some(ptr) => {
                // SAFETY: a TLB entry maps a whole page of RAM.
                unsafe { T::store(ptr, value) };
                Ok(())
            }
            None => self.write_slow(linear, value, self.mode.data),
        }
    }

    /// Reads, computes and writes back, not atomically. Faults before anything changes.
    #[inline(always)]
    pub(crate) fn modify<T: Int>(&mut self, linear: u64, f: impl FnOnce(&mut Cpu, T) -> T) -> Result<()> {
        if let Some(ptr) = self.tlb.lookup_write(self.mode.data, linear, T::BYTES) {
            // SAFETY: a TLB entry maps a whole page of RAM.
            unsafe {
                let new = f(self, T::load(ptr));
                T::store(ptr, new);
            }
            return Ok(());
        }
        self.check_write(linear, T::BYTES)?;
        let old = self.read(linear)?;
        let new = f(self, old);
        self.write(linear, new)
    }

    /// Reads bytes.
    pub(crate) fn read_bytes(&mut self, linear: u64, bytes: &mut [u8]) -> Result<()> {
        self.read_bytes_as(linear, bytes, self.mode.data)
    }

    /// Writes bytes; faults before anything changes.
    pub(crate) fn write_bytes(&mut self, linear: u64, bytes: &[u8]) -> Result<()> {
        self.write_bytes_as(linear, bytes, self.mode.data)
    }

    /// Raises the fault that writing `len` bytes would raise, and nothing else.
    pub(crate) fn check_write(&mut self, linear: u64, len: usize) -> Result<()> {
        self.check_write_as(linear, len, self.mode.data)
    }

    pub(crate) fn check_write_as(&mut self, linear: u64, len: usize, mmu: MmuIndex) -> Result<()> {
        check_alignment(mmu, linear, len)?;
        if self.tlb.lookup_write(mmu, linear, len).is_some()
            || self.known_across(linear, len, true, mmu).is_some()
        {
            return Ok(());
        }
        let last = linear.wrapping_add(len as u64 - 1);
        self.translate(linear, Access::Write, mmu)?;
        if (linear ^ last) & !0xfff != 0 {
            self.translate(last & !0xfff, Access::Write, mmu)?;
        }
        Ok(())
    }

    /// Raises the fault that an access of `len` bytes raises if its alignment is checked and it has none.
    pub(crate) fn check_alignment(&self, linear: u64, len: usize) -> Result<()> {
        check_alignment(self.mode.data, linear, len)
    }

    /// The present privilege, for accesses whose alignment is never checked.
    pub(crate) fn mmu_unchecked(&self) -> MmuIndex {
        match self.mode.data {
            MmuIndex::UserAligned => MmuIndex::User,
            mmu => mmu,
        }
    }

    /// Host address for reading `len` bytes; `None` when they cross a page or are not RAM (use
    /// [`Cpu::read_bytes`]).
    pub(crate) fn host_for_read(&mut self, linear: u64, len: usize) -> Result<Option<*const u8>> {
        let mmu = self.mode.data;
        if let Some(ptr) = self.tlb.lookup_read(mmu, linear, len) {
            return Ok(Some(ptr));
        }
        if crosses(linear, len) {
            return Ok(None);
        }
        check_alignment(self.mode.data, linear, len)?;
        self.fill(linear, Access::Read, mmu)?;
        Ok(self.tlb.lookup_read(mmu, linear, len))
    }

    /// Host address for writing `len` bytes; `None` when they cross a page, are not RAM, or have to be
    /// reported (use [`Cpu::write_bytes`], or [`Cpu::locked`] for atomic access).
    pub(crate) fn host_for_write(&mut self, linear: u64, len: usize) -> Result<Option<*mut u8>> {
        let mmu = self.mode.data;
        if let Some(ptr) = self.tlb.lookup_write(mmu, linear, len) {
            return Ok(Some(ptr));
        }
        if crosses(linear, len) {
            return Ok(None);
        }
        if self.vm.options.jit == Jit::Lockstep {
            return self.noted_for_write(linear, len);
        }
        check_alignment(self.mode.data, linear, len)?;
        self.fill(linear, Access::Write, mmu)?;
        Ok(self.tlb.lookup_write(mmu, linear, len))
    }

    /// Host address for an atomic read-modify-write of `len` bytes in one page of RAM, even one whose
    /// writes have to be reported: call [`Cpu::wrote`] with the returned physical address afterwards.
    /// `None` when the bytes cross a page or are not RAM.
    pub(crate) fn locked(&mut self, linear: u64, len: usize) -> Result<Option<(*mut u8, u64)>> {
        check_alignment(self.mode.data, linear, len)?;
        let last = linear.wrapping_add(len as u64 - 1);
        let translation = self.translate(linear, Access::Write, self.mode.data)?;
        if (linear ^ last) & !0xfff != 0 {
            self.translate(last & !0xfff, Access::Write, self.mode.data)?;
            return Ok(None);
        }
        Ok(match self.place_to_write(translation.gpa) {
            Place::Ram(ptr) => {
                self.note_write(ptr, translation.gpa, len);
                Some((ptr, translation.gpa))
            }
            Place::Device(_) => None,
        })
    }

    /// Reports a write through a pointer from [`Cpu::locked`].
    pub(crate) fn wrote(&mut self, gpa: u64, len: usize) {
        if self.ram.write_needs_report(gpa) && !self.guard.blocks() {
            self.code_modified |= self.ram.is_code_watched(gpa);
            self.ram.report_write(gpa, len as u64);
        }
    }

    // ---- the slow way ----

    #[cold]
    #[inline(never)]
    fn read_slow<T: Int>(&mut self, linear: u64, mmu: MmuIndex) -> Result<T> {
        let mut bytes = [0; 8];
        self.read_bytes_as(linear, &mut bytes[..T::BYTES], mmu)?;
        Ok(T::from_u64(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<T: Int>(&mut self, linear: u64, value: T, mmu: MmuIndex) -> Result<()> {
        self.write_bytes_as(linear, &value.to_u64().to_le_bytes()[..T::BYTES], mmu)
    }

    pub(crate) fn read_bytes_as(&mut self, linear: u64, bytes: &mut [u8], mmu: MmuIndex) -> Result<()> {
        check_alignment(mmu, linear, bytes.len())?;
        if self.read_known_across(linear, bytes, mmu) {
            return Ok(());
        }
        let first = self.fill(linear, Access::Read, mmu)?;
        let here = bytes.len().min((PAGE_SIZE - linear % PAGE_SIZE) as usize);
        let (head, tail) = bytes.split_at_mut(here);
        // Both pages are translated before a device sees anything.
        let second = match tail.is_empty() {
            true => None,
            false => Some(self.fill(self.next_page(linear), Access::Read, mmu)?),
        };
        self.read_place(first.gpa, head);
        if let Some(second) = second {
            self.read_place(second.gpa, tail);
        }
        Ok(())
    }

    pub(crate) fn write_bytes_as(&mut self, linear: u64, bytes: &[u8], mmu: MmuIndex) -> Result<()> {
        check_alignment(mmu, linear, bytes.len())?;
        if let Some(known) = self.known_across(linear, bytes.len(), true, mmu) {
            let (head, tail) = bytes.split_at(known.here);
            // SAFETY: TLB entries map whole pages of RAM, and each part lies in its page.
            unsafe {
                std::ptr::copy(head.as_ptr(), known.first, head.len());
                std::ptr::copy(tail.as_ptr(), known.second, tail.len());
            }
            return Ok(());
        }
        let first = self.fill(linear, Access::Write, mmu)?;
        let here = bytes.len().min((PAGE_SIZE - linear % PAGE_SIZE) as usize);
        let (head, tail) = bytes.split_at(here);
        let second = match tail.is_empty() {
            true => None,
            false => Some(self.fill(self.next_page(linear), Access::Write, mmu)?),
        };
        self.write_place(first.gpa, head);
        if let Some(second) = second {
            self.write_place(second.gpa, tail);
        }
        Ok(())
    }

    /// Reads bytes that lie in two pages, if the TLB knows both.
    pub(crate) fn read_known_across(&self, linear: u64, bytes: &mut [u8], mmu: MmuIndex) -> bool {
        let Some(known) = self.known_across(linear, bytes.len(), false, mmu) else { return false };
        let (head, tail) = bytes.split_at_mut(known.here);
        // SAFETY: TLB entries map whole pages of RAM, and each part lies in its page.
        unsafe {
            std::ptr::copy(known.first, head.as_mut_ptr(), head.len());
            std::ptr::copy(known.second, tail.as_mut_ptr(), tail.len());
        }
        true
    }

    /// Where `len` bytes are that lie in two pages, if the TLB knows both for that access.
    fn known_across(&self, linear: u64, len: usize, write: bool, mmu: MmuIndex) -> Option<Across> {
        if !crosses(linear, len) || len > PAGE_SIZE as usize {
            return None;
        }
        let here = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        let look_up = |linear, len| match write {
            true => self.tlb.lookup_write(mmu, linear, len),
            false => self.tlb.lookup_read(mmu, linear, len).map(<*const u8>::cast_mut),
        };
        let first = look_up(linear, here)?;
        let second = look_up(self.next_page(linear), len - here)?;
        Some(Across { here, first, second })
    }

    /// The first address of the page after that of `linear`; 32-bit addresses wrap.
    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear & !0xfff).wrapping_add(0x1000);
        if self.mode.long { next } else { next & 0xffff_ffff }
    }

    /// Translates and enters the page in the TLB where that is allowed.
    fn fill(&mut self, linear: u64, access: Access, mmu: MmuIndex) -> Result<Translation> {
        match access {
            Access::Write => self.counts.tlb_misses_write.add(),
            _ => self.counts.tlb_misses_read.add(),
        }
        let translation = self.translate(linear, access, mmu)?;
        if let Place::Ram(ptr) = self.place(translation.gpa & !0xfff) {
            // In lock-step every write takes the slow way, where it is noted.
            let mut writable = translation.writable && self.vm.options.jit != Jit::Lockstep;
            if writable {
                self.vm.code.note_writable(translation.gpa);
                writable = !self.ram.write_needs_report(translation.gpa);
            }
            if self.vm.options.stress.one_tlb_entry {
                self.tlb.drop_last();
            }
            self.tlb.insert(mmu, linear, ptr, writable, translation.global);
            if translation.page_size > PAGE_SIZE {
                self.tlb.note_large(linear, translation.page_size);
            }
        }
        Ok(translation)
    }

    /// Enters the page of `linear` in the TLB if the second level knows that the access is allowed; true if it
    /// is there now. Touches no page table.
    pub(crate) fn enter_known_page(&mut self, linear: u64, access: Access) -> bool {
        // Whoever asks keeps what was entered before.
        if self.vm.options.stress.one_tlb_entry || self.vm.options.jit == Jit::Lockstep {
            return false;
        }
        let mmu = self.mode.data;
        self.is_known(linear, access, mmu)
            && self.fill(linear, access, mmu).is_ok()
            && match access {
                Access::Write => self.tlb.lookup_write(mmu, linear, 1).is_some(),
                _ => self.tlb.lookup_read(mmu, linear, 1).is_some(),
            }
    }

    fn place(&self, gpa: u64) -> Place {
        match self.ram.host_page(gpa) {
            // SAFETY: the offset is inside the page.
            Some(page) => Place::Ram(unsafe { page.ptr.add((gpa % PAGE_SIZE) as usize) }),
            None => Place::Device(gpa),
        }
    }

    /// Where a write goes: read-only memory leaves it to whatever device has the address.
    fn place_to_write(&self, gpa: u64) -> Place {
        match self.ram.host_page(gpa) {
            Some(page) if page.read_only => Place::Device(gpa),
            _ => self.place(gpa),
        }
    }

    /// Reads bytes of one physical page.
    fn read_place(&mut self, gpa: u64, bytes: &mut [u8]) {
        match self.place(gpa) {
            // SAFETY: the bytes lie in one page of RAM.
            Place::Ram(ptr) => unsafe {
                match bytes.len() {
                    1 => bytes.copy_from_slice(&u8::load(ptr).to_le_bytes()),
                    2 => bytes.copy_from_slice(&u16::load(ptr).to_le_bytes()),
                    4 => bytes.copy_from_slice(&u32::load(ptr).to_le_bytes()),
                    8 => bytes.copy_from_slice(&u64::load(ptr).to_le_bytes()),
                    len => std::ptr::copy(ptr, bytes.as_mut_ptr(), len),
                }
            },
            Place::Device(gpa) => {
                for (at, chunk) in (gpa..).step_by(8).zip(bytes.chunks_mut(8)) {
                    chunk.fill(0xff);
                    self.device_read(at, chunk);
                }
            }
        }
    }

    /// Writes bytes of one physical page and reports it where needed.
    fn write_place(&mut self, gpa: u64, bytes: &[u8]) {
        match self.place_to_write(gpa) {
            Place::Ram(ptr) => {
                self.note_write(ptr, gpa, bytes.len());
                // SAFETY: the bytes lie in one page of RAM.
                unsafe {
                    match *bytes {
                        [a] => u8::store(ptr, a),
                        [a, b] => u16::store(ptr, u16::from_le_bytes([a, b])),
                        [a, b, c, d] => u32::store(ptr, u32::from_le_bytes([a, b, c, d])),
                        [a, b, c, d, e, f, g, h] => {
                            u64::store(ptr, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
                        }
                        _ => std::ptr::copy(bytes.as_ptr(), ptr, bytes.len()),
                    }
                }
                self.wrote(gpa, bytes.len());
            }
            Place::Device(gpa) => {
                for (at, chunk) in (gpa..).step_by(8).zip(bytes.chunks(8)) {
                    self.device_write(at, chunk);
                }
            }
        }
    }

    fn device_read(&mut self, gpa: u64, bytes: &mut [u8]) {
        if self.guard.blocks() {
            return;
        }
        self.vm.counters.mmio.add();
        match self.lapic.mmio_offset(gpa) {
            Some(offset) => self.lapic_mmio_read(offset, bytes),
            None => self.io().mmio_read(gpa, bytes),
        }
    }

    fn device_write(&mut self, gpa: u64, bytes: &[u8]) {
        if self.guard.blocks() {
            return;
        }
        self.vm.counters.mmio.add();
        match self.lapic.mmio_offset(gpa) {
            Some(offset) => self.lapic_mmio_write(offset, bytes),
            None => self.io().mmio_write(gpa, bytes),
        }
    }

    // ---- segments ----

    /// The linear address of `len` bytes at `offset` in segment `segment` (or [`FLAT`]), with the
    /// checks of the mode: rights and limit outside 64-bit mode (SDM vol. 3A, §5.3), canonicality in it.
    #[inline(always)]
    pub(crate) fn linear(&mut self, segment: u8, offset: u64, len: usize, write: bool) -> Result<u64> {
        if self.mode.code_bits == 64 {
            // Non-canonical addresses never hit the TLB; the walk refuses them with #GP, except here.
            if segment as usize == seg::SS {
                return if x86::paging::is_canonical(offset) { Ok(offset) } else { Err(Fault::SS0) };
            }
            return Ok(self.regs.seg[segment as usize].base.wrapping_add(offset));
        }
        self.linear_legacy(segment, offset, len, write)
    }

    fn linear_legacy(&mut self, segment: u8, offset: u64, len: usize, write: bool) -> Result<u64> {
        debug_assert!(segment as usize != FLAT);
        let register = &self.regs.seg[segment as usize];
        let fault = if segment as usize == seg::SS { Fault::SS0 } else { Fault::GP0 };
        let last = offset.wrapping_add(len as u64 - 1);
        let code = register.has(rights::CODE);
        if !self.mode.is_real_like() {
            let readable = !code || register.has(rights::READABLE);
            let writable = !code && register.has(rights::WRITABLE);
            if register.is_unusable() || (write && !writable) || (!write && !readable) {
                return Err(fault);
            }
        }
        let limit = register.limit as u64;
        let inside = match !code && register.has(rights::EXPAND_DOWN) {
            false => last <= limit && offset <= limit,
            true => {
                let top = if register.has(rights::DEFAULT_BIG) { 0xffff_ffff } else { 0xffff };
                offset > limit && last <= top && last >= offset
            }
        };
        if !inside {
            return Err(fault);
        }
        Ok(register.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Whether the processor executes with interrupts enabled.
    #[inline(always)]
    pub(crate) fn interrupts_enabled(&self) -> bool {
        self.regs.rflags & rflags::IF != 0 && !self.shadow
    }
}

/// Raises #AC where alignment is checked and the access has none. What is not canonical is not checked: it
/// raises #GP.
#[inline(always)]
fn check_alignment(mmu: MmuIndex, linear: u64, len: usize) -> Result<()> {
    if mmu == MmuIndex::UserAligned
        && !linear.is_multiple_of(alignment(len))
        && x86::paging::is_canonical(linear)
    {
        return Err(Fault::with_code(Vector::AlignmentCheck, 0));
    }
    Ok(())
}

/// What the address of an operand has to be a multiple of where alignment is checked (SDM vol. 3A, table
/// 6-7, for what it names; as AMD's processors do for the rest).
fn alignment(len: usize) -> u64 {
    match len {
        2 | 4 | 8 => len as u64,
        16 | 32 => 16,
        // Far pointers, and the x87 environment and state of 16-bit code.
        6 | 14 | 94 => 2,
        // x87 registers.
        10 => 8,
        28 | 108 => 4,
        _ => 1,
    }
}
