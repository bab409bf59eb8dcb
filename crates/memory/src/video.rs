//! Memory of a display adapter, which its guest moves about with a base address register.

use crate::ram::RamRange;
use crate::{Error, ErrorKind, PAGE_SIZE};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use vm_memory::MmapRegion;

/// Where the memory is while it is nowhere.
const NOWHERE: u64 = u64::MAX;

/// Memory that is shared by a display adapter and the guest, beside RAM: guests load and store it like RAM
/// while it has a place, and execute nothing from it. It belongs to no dirty log and is never cleared: its
/// device does that, and saves it.
pub struct VideoMemory {
    mapping: MmapRegion,
    hva: *mut u8,
    len: u64,
    start: AtomicU64,
}

// SAFETY: the pointer leads into `mapping`, which lives as long, and all access through it is atomic or by
// engines that treat it like RAM.
unsafe impl Send for VideoMemory {}
// SAFETY: as above.
unsafe impl Sync for VideoMemory {}

impl VideoMemory {
    /// Makes `len` bytes of zeroed memory, with no place yet.
    ///
    /// # Errors
    /// When the length is not a positive multiple of the page size, or the host refuses.
    pub fn new(len: u64) -> Result<VideoMemory, Error> {
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Error::new(ErrorKind::BadSize, format!("cannot make {len} bytes of video memory")));
        }
        let mapping: MmapRegion = MmapRegion::new(len as usize).map_err(|e| {
            Error::new(ErrorKind::HostRefused, format!("cannot map {len} bytes of video memory"))
                .with_source(e)
        })?;
        let hva = mapping.as_ptr();
        Ok(VideoMemory { mapping, hva, len, start: AtomicU64::new(NOWHERE) })
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Where the guest finds it now.
    pub fn place(&self) -> Option<RamRange> {
        let start = self.start.load(Ordering::Acquire);
        (start != NOWHERE).then_some(RamRange { start, len: self.len })
    }

    /// Gives it a place among the guest's addresses, or takes it away; returns whether that changed anything.
    /// The caller makes sure that nothing else is there, and tells the engine of a change.
    pub fn set_place(&self, start: Option<u64>) -> bool {
        let start = start.unwrap_or(NOWHERE);
        self.start.swap(start, Ordering::AcqRel) != start
    }

    /// Host address of the first byte, for engines that map memory slots.
    pub fn host_address(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    #[inline]
    pub(crate) fn page(&self, gpa: u64) -> Option<*mut u8> {
        let start = self.start.load(Ordering::Acquire);
        let offset = gpa.wrapping_sub(start);
        (start != NOWHERE && offset < self.len)
            // SAFETY: inside the mapping, whose length is a multiple of the page size.
            .then(|| unsafe { self.hva.add((offset & !(PAGE_SIZE - 1)) as usize) })
    }

    fn byte(&self, offset: u64) -> Option<&AtomicU8> {
        // SAFETY: inside the mapping, which lives as long as `self`, and a byte is always aligned.
        (offset < self.len).then(|| unsafe { AtomicU8::from_ptr(self.hva.add(offset as usize)) })
    }

    /// Reads the byte at an offset; 0 beyond the end.
    #[inline]
    pub fn load(&self, offset: u64) -> u8 {
        self.byte(offset).map_or(0, |byte| byte.load(Ordering::Relaxed))
    }

    /// Writes the byte at an offset; nothing beyond the end.
    #[inline]
    pub fn store(&self, offset: u64, value: u8) {
        if let Some(byte) = self.byte(offset) {
            byte.store(value, Ordering::Relaxed);
        }
    }

    /// Fills `into` from an offset on, as far as there is memory.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(offset..self.len) {
            *byte = self.load(at);
        }
    }

    /// Writes bytes from an offset on, as far as there is memory.
    pub fn write(&self, offset: u64, from: &[u8]) {
        for (byte, at) in from.iter().zip(offset..self.len) {
            self.store(at, *byte);
        }
    }

    /// Makes a stretch zero, as far as there is memory.
    pub fn clear(&self, offset: u64, len: u64) {
        (offset..self.len).take(usize::try_from(len).unwrap_or(usize::MAX)).for_each(|at| self.store(at, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_only_where_it_is() {
        let video = VideoMemory::new(4 * PAGE_SIZE).unwrap();
        assert!(video.place().is_none() && video.page(u64::MAX).is_none() && video.page(0).is_none());
        assert!(video.set_place(Some(0xe000_0000)) && !video.set_place(Some(0xe000_0000)));
        let page = video.page(0xe000_1234).unwrap();
        assert_eq!(page as u64, video.host_address() as u64 + PAGE_SIZE);
        assert!(video.page(0xe000_4000).is_none() && video.page(0xdfff_ffff).is_none());
        assert!(video.set_place(None) && video.page(0xe000_0000).is_none());
    }

    #[test]
    fn accesses_stay_inside() {
        let video = VideoMemory::new(PAGE_SIZE).unwrap();
        video.write(PAGE_SIZE - 2, &[1, 2, 3, 4]);
        let mut bytes = [9; 4];
        video.read(PAGE_SIZE - 2, &mut bytes);
        assert_eq!(bytes, [1, 2, 9, 9]);
        video.store(u64::MAX, 1);
        video.clear(PAGE_SIZE - 1, u64::MAX);
        assert_eq!((video.load(PAGE_SIZE - 2), video.load(PAGE_SIZE - 1), video.load(PAGE_SIZE)), (1, 0, 0));
        assert!(VideoMemory::new(0).is_err() && VideoMemory::new(100).is_err());
    }
}
