//! The RAM of one machine.

use crate::map::{self, FileSegment};
use crate::video::VideoMemory;
use crate::watch::{CodeWatcher, RegionWatch, WatchShared, WriteWatch};
use crate::{Error, ErrorKind, GuestMemory, PageSet};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion, mmap::MmapRegionBuilder};

/// Size of a page of guest memory as tracked here, in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// RAM below 4 GiB ends here at the latest; what follows is for memory-mapped devices. It is where BIOS
/// firmware for the Q35 chipset puts PCI configuration space, whatever the size of memory.
pub const LOW_RAM_END: u64 = 0xB000_0000;
/// RAM that does not fit below [`LOW_RAM_END`] continues here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// A range of guest-physical addresses that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes, a multiple of [`PAGE_SIZE`].
    pub len: u64,
}

impl RamRange {
    /// The first address after the range.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// A page of RAM as an engine sees it.
#[derive(Clone, Copy, Debug)]
pub struct HostPage {
    /// Host address of the page's first byte. Valid for [`PAGE_SIZE`] bytes while the [`Ram`] lives.
    pub ptr: *mut u8,
    /// The page is read-only memory: what a guest writes there goes to whatever device has that address.
    pub read_only: bool,
}

pub(crate) struct Region {
    pub(crate) range: RamRange,
    /// Where the region begins among all RAM.
    pub(crate) offset: u64,
    pub(crate) hva: *mut u8,
    watch: Arc<RegionWatch>,
    read_only: bool,
}

/// What holds the bytes.
pub(crate) enum Backing {
    /// A memfd, mapped shared: other processes can be given it.
    Shared(Arc<File>),
    /// Files mapped private, with nothing where no segment is. Nobody else sees what is written.
    Private(Vec<FileSegment>),
}

/// The RAM of one machine. Shared by engine, devices and loaders through an `Arc`.
///
/// Its bytes are numbered in two ways: by guest-physical address, and by *offset*, in which the ranges
/// follow each other without gaps. Pages are counted by offset.
pub struct Ram {
    guest: GuestMemory,
    /// RAM, then read-only memory.
    regions: Vec<Region>,
    /// What keeps read-only memory mapped.
    roms: Vec<MmapRegion>,
    shared: Arc<WatchShared>,
    backing: Mutex<Backing>,
    /// Addresses below [`LOW_RAM_END`] that are not RAM to the guest.
    window: RamRange,
    video: Option<Arc<VideoMemory>>,
}

// SAFETY: the raw pointers point into mappings that live as long as `guest`, and all access through
// them is atomic or volatile.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Creates `size` bytes of zeroed RAM: from 0 up to [`LOW_RAM_END`], the rest from
    /// [`HIGH_RAM_START`].
    ///
    /// # Errors
    /// When `size` is zero or no multiple of the page size, or the host refuses.
    pub fn new(size: u64) -> Result<Ram, Error> {
        check_size(size)?;
        let file = Arc::new(map::memfd(size)?);
        Ram::build(size, Backing::Shared(file))
    }

    /// Creates `size` bytes of RAM with the contents of files, which are mapped copy-on-write: pages come
    /// from the host's page cache when they are touched, and what is written stays in this process.
    /// Segments do not overlap; where there is none, memory is zero. Nobody may shorten or change the
    /// files while the RAM lives.
    ///
    /// # Errors
    /// As [`Ram::new`], and when a segment does not lie on whole pages within `size` and its file.
    pub fn from_files(size: u64, segments: Vec<FileSegment>) -> Result<Ram, Error> {
        check_size(size)?;
        map::check_segments(size, &segments)?;
        Ram::build(size, Backing::Private(segments))
    }

    fn build(size: u64, backing: Backing) -> Result<Ram, Error> {
        let refused = |what: &str| {
            Error::new(ErrorKind::HostRefused, format!("cannot {what} {size} bytes of guest memory"))
        };
        let low = size.min(LOW_RAM_END);
        let mut ranges = vec![RamRange { start: 0, len: low }];
        if size > low {
            ranges.push(RamRange { start: HIGH_RAM_START, len: size - low });
        }
        let shared = Arc::new(WatchShared::default());
        let (mut regions, mut mapped, mut offset) = (Vec::new(), Vec::new(), 0);
        for range in ranges {
            let watch = Arc::new(RegionWatch::new(range.start, range.len, shared.clone()));
            // Room in the address space first; what lies behind it is mapped over it.
            let mapping: MmapRegion<WriteWatch> =
                MmapRegionBuilder::new_with_bitmap(range.len as usize, WriteWatch { region: watch.clone() })
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
                    .build()
                    .map_err(|e| refused("map").with_source(e))?;
            regions.push(Region { range, offset, hva: mapping.as_ptr(), watch, read_only: false });
            let region =
                GuestRegionMmap::new(mapping, GuestAddress(range.start)).ok_or_else(|| refused("place"))?;
            mapped.push(region);
            offset += range.len;
        }
        let guest = GuestMemory::from_regions(mapped).map_err(|e| refused("arrange").with_source(e))?;
        for region in &regions {
            map::map_region(region, &backing)?;
        }
        let window = RamRange { start: 0, len: 0 };
        let backing = Mutex::new(backing);
        Ok(Ram { guest, regions, roms: Vec::new(), shared, backing, window, video: None })
    }

    /// Adds read-only memory with these contents at `start`: firmware. Guests execute it and read it like
    /// RAM; devices and loaders do not see it, and it belongs to no dirty log.
    ///
    /// # Errors
    /// When the place is taken, start or length are no multiples of the page size, or the host refuses.
    pub fn add_rom(&mut self, start: u64, data: &[u8]) -> Result<(), Error> {
        let len = data.len() as u64;
        let end = start
            .checked_add(len)
            .filter(|_| len > 0 && len.is_multiple_of(PAGE_SIZE) && start.is_multiple_of(PAGE_SIZE));
        let taken = |end: u64| self.regions.iter().any(|r| r.range.start < end && start < r.range.end());
        if end.is_none_or(taken) {
            let context = format!("cannot place {len} bytes of read-only memory at {start:#x}");
            return Err(Error::new(ErrorKind::BadSize, context));
        }
        let refused = || Error::new(ErrorKind::HostRefused, format!("cannot map {len} bytes of memory"));
        let mapping: MmapRegion = MmapRegion::new(data.len()).map_err(|e| refused().with_source(e))?;
        let hva = mapping.as_ptr();
        // SAFETY: the mapping is new, so nobody else uses it, and as long as the data.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), hva, data.len()) };
        let watch = Arc::new(RegionWatch::new(start, len, self.shared.clone()));
        self.regions.push(Region {
            range: RamRange { start, len },
            offset: u64::MAX,
            hva,
            watch,
            read_only: true,
        });
        self.roms.push(mapping);
        Ok(())
    }

    /// Leaves these addresses, whole pages, to devices: guests find no RAM there. What is behind them stays
    /// part of RAM and of [`Ram::ranges`], unused. Once, before an engine has the RAM.
    pub fn leave_to_devices(&mut self, window: RamRange) {
        debug_assert!(window.start.is_multiple_of(PAGE_SIZE) && window.len.is_multiple_of(PAGE_SIZE));
        self.window = window;
    }

    /// Adds the memory of a display adapter. Once, before an engine has the RAM. Whenever its place changes,
    /// the engine has to be told.
    pub fn set_video(&mut self, video: Arc<VideoMemory>) {
        self.video = Some(video);
    }

    /// The memory of the display adapter.
    pub fn video(&self) -> Option<&Arc<VideoMemory>> {
        self.video.as_ref()
    }

    /// The ranges of RAM as guests find them: [`Ram::ranges`] without what was left to devices.
    pub fn guest_ranges(&self) -> Vec<RamRange> {
        let window = self.window;
        let mut ranges = Vec::new();
        for range in self.ranges() {
            if window.len == 0 || window.start >= range.end() || window.end() <= range.start {
                ranges.push(range);
                continue;
            }
            let before = RamRange { start: range.start, len: window.start.saturating_sub(range.start) };
            let after = RamRange { start: window.end(), len: range.end().saturating_sub(window.end()) };
            ranges.extend([before, after].into_iter().filter(|part| part.len > 0));
        }
        ranges
    }

    /// The view for devices, rings and loaders.
    pub fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// The memfd behind the RAM, for processes that share it: regions in the order of [`Ram::ranges`],
    /// without gaps. `None` for RAM that was made by [`Ram::from_files`] and not cleared since: what the
    /// guest writes to it is seen by nobody else, so a device in another process cannot be had.
    pub fn shared_file(&self) -> Option<Arc<File>> {
        match &*self.backing() {
            Backing::Shared(file) => Some(file.clone()),
            Backing::Private(_) => None,
        }
    }

    pub(crate) fn backing(&self) -> MutexGuard<'_, Backing> {
        self.backing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all memory zero by giving it back to the host. No vCPU runs and no device works. This is no
    /// write: neither dirty log nor watcher hears of it.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn clear(&self) -> Result<(), Error> {
        let mut backing = self.backing();
        if let Backing::Shared(file) = &*backing {
            return map::punch(file, self.size());
        }
        // From now on it is memory like any other.
        let fresh = Backing::Shared(Arc::new(map::memfd(self.size())?));
        for region in self.ram_regions() {
            map::map_region(region, &fresh)?;
        }
        *backing = fresh;
        Ok(())
    }

    /// Gives pages back to the host whose content the guest does not need: those that lie wholly in the `len`
    /// bytes from `gpa` on and are RAM. They then read as zero, or as the file that they were made from. Neither
    /// dirty log nor watcher hears of it. Returns the number of bytes.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn discard(&self, gpa: u64, len: u64) -> io::Result<u64> {
        let backing = self.backing();
        let (from, to) =
            (gpa.checked_next_multiple_of(PAGE_SIZE), gpa.saturating_add(len) & !(PAGE_SIZE - 1));
        let mut done = 0;
        for region in self.ram_regions() {
            let start = from.unwrap_or(u64::MAX).max(region.range.start);
            let end = to.min(region.range.end());
            if start < end {
                map::discard(region, start - region.range.start, end - start, &backing)?;
                done += end - start;
            }
        }
        Ok(done)
    }

    /// Has the host provide the pages of `len` bytes from `gpa` on, which are about to be written: many at once take a
    /// fraction of the time that they take one by one. What it refuses comes when it is touched.
    pub fn populate(&self, gpa: u64, len: u64) {
        let Some(range) = (len > 0).then_some(RamRange { start: gpa, len }) else { return };
        if gpa.checked_add(len).is_none() {
            return;
        }
        let Some(start) = self.host_address(range) else { return };
        let offset = start as usize % PAGE_SIZE as usize;
        let len = offset + len as usize;
        // SAFETY: pages of the region's mapping, whose contents stay what they are.
        let _ = unsafe {
            rustix::mm::madvise(start.sub(offset).cast(), len, rustix::mm::Advice::LinuxPopulateWrite)
        };
    }

    /// The ranges that are RAM, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = RamRange> + '_ {
        self.ram_regions().map(|region| region.range)
    }

    /// The ranges that are read-only memory.
    pub fn rom_ranges(&self) -> impl Iterator<Item = RamRange> + '_ {
        self.regions.iter().filter(|region| region.read_only).map(|region| region.range)
    }

    pub(crate) fn ram_regions(&self) -> impl Iterator<Item = &Region> + '_ {
        self.regions.iter().filter(|region| !region.read_only)
    }

    /// Host address of a range's first byte, for engines that map memory slots.
    pub fn host_address(&self, range: RamRange) -> Option<*mut u8> {
        let inside =
            |region: &&Region| region.range.start <= range.start && range.end() <= region.range.end();
        let region = self.regions.iter().find(inside)?;
        // SAFETY: inside the region's mapping, as was just checked.
        Some(unsafe { region.hva.add((range.start - region.range.start) as usize) })
    }

    /// Total size in bytes.
    pub fn size(&self) -> u64 {
        self.ranges().map(|range| range.len).sum()
    }

    #[inline]
    fn region(&self, gpa: u64) -> Option<(&Region, usize)> {
        if gpa.wrapping_sub(self.window.start) < self.window.len {
            return None;
        }
        // Two of RAM at most, and one or two of firmware: a loop over them is faster than any index.
        for region in &self.regions {
            let offset = gpa.wrapping_sub(region.range.start);
            if offset < region.range.len {
                return Some((region, offset as usize));
            }
        }
        None
    }

    /// The host page behind the page that contains `gpa`; `None` when that is no memory.
    #[inline]
    pub fn host_page(&self, gpa: u64) -> Option<HostPage> {
        match self.code_page(gpa) {
            Some(page) => Some(page),
            None => self.video.as_ref()?.page(gpa).map(|ptr| HostPage { ptr, read_only: false }),
        }
    }

    /// As [`Ram::host_page`], of pages that code may be executed from: not those of video memory, whose
    /// writes nobody hears of.
    #[inline]
    pub fn code_page(&self, gpa: u64) -> Option<HostPage> {
        let (region, offset) = self.region(gpa)?;
        // SAFETY: `offset` is inside the mapping, whose length is a multiple of the page size.
        let ptr = unsafe { region.hva.add(offset & !(PAGE_SIZE as usize - 1)) };
        Some(HostPage { ptr, read_only: region.read_only })
    }

    /// Whether writes to the page of `gpa` have to be reported with [`Ram::report_write`]: it holds
    /// watched code, or dirty logging is on and the page is not in the log yet. So of pages that are not
    /// memory; those of video memory need none. An engine caches a page as freely writable only while this
    /// is false.
    #[inline]
    pub fn write_needs_report(&self, gpa: u64) -> bool {
        let Some((region, offset)) = self.region(gpa) else {
            return self.video.as_ref().is_none_or(|video| video.page(gpa).is_none());
        };
        let page = offset / PAGE_SIZE as usize;
        region.read_only
            || region.watch.code.get(page)
            || (self.shared.logging.load(Ordering::Relaxed) && !region.watch.dirty.get(page))
    }

    /// Reports a write that an engine did through a host pointer, after it was done.
    #[inline]
    pub fn report_write(&self, gpa: u64, len: u64) {
        if let Some((region, offset)) = self.region(gpa) {
            region.watch.written(offset, (len as usize).min(region.range.len as usize - offset));
        }
    }

    /// Sets who hears of writes to watched code. At most one watcher per machine, set before any vCPU
    /// runs. It is not kept alive: a watcher usually holds the RAM.
    ///
    /// # Panics
    /// When a watcher is already set.
    pub fn set_code_watcher(&self, watcher: &Arc<impl CodeWatcher + 'static>) {
        let watcher: Arc<dyn CodeWatcher> = watcher.clone();
        assert!(self.shared.watcher.set(Arc::downgrade(&watcher)).is_ok(), "one code watcher per machine");
    }

    /// Starts watching the page of `gpa` for writes; returns whether it was not watched before. The
    /// engine then drops every cached permission to write that page unreported, in all its vCPUs,
    /// before it trusts what it decodes from it.
    pub fn watch_code(&self, gpa: u64) -> bool {
        self.region(gpa).is_some_and(|(region, offset)| region.watch.code.set(offset / PAGE_SIZE as usize))
    }

    /// Whether the page of `gpa` is watched.
    #[inline]
    pub fn is_code_watched(&self, gpa: u64) -> bool {
        self.region(gpa).is_some_and(|(region, offset)| region.watch.code.get(offset / PAGE_SIZE as usize))
    }

    /// Stops watching the page of `gpa`.
    pub fn unwatch_code(&self, gpa: u64) {
        if let Some((region, offset)) = self.region(gpa) {
            region.watch.code.clear(offset / PAGE_SIZE as usize);
        }
    }

    /// Turns the dirty log on (with an empty log) or off. When turning it on, vCPUs of a software
    /// engine must be paused, or drop their cached write permissions before the first `take_dirty`.
    pub fn set_dirty_logging(&self, on: bool) {
        for region in self.ram_regions() {
            region.watch.dirty.take();
        }
        self.shared.logging.store(on, Ordering::SeqCst);
    }

    /// Whether the dirty log is on.
    pub fn dirty_logging(&self) -> bool {
        self.shared.logging.load(Ordering::Relaxed)
    }

    /// Takes the log and leaves it empty. As with [`Ram::set_dirty_logging`], vCPUs drop their cached
    /// write permissions before the log means anything again.
    pub fn take_dirty(&self) -> PageSet {
        let mut log = PageSet::new(self.pages());
        for region in self.ram_regions() {
            log.insert_words(region.offset / PAGE_SIZE, &region.watch.dirty.take());
        }
        log
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.size() / PAGE_SIZE
    }

    /// Reads a naturally aligned integer of 1, 2, 4 or 8 bytes atomically. For page-table walks and the
    /// like; `None` when it is not RAM or not aligned.
    #[inline]
    pub fn load<T: AtomicInt>(&self, gpa: u64) -> Option<T> {
        let ptr = self.atomic_ptr::<T>(gpa, Use::Read)?;
        // SAFETY: `atomic_ptr` checked bounds and alignment; the mapping lives as long as `self`.
        Some(unsafe { T::load(ptr) })
    }

    /// Writes a naturally aligned integer atomically and reports the write. `None` as for
    /// [`Ram::load`], and for read-only memory.
    #[inline]
    pub fn store<T: AtomicInt>(&self, gpa: u64, value: T) -> Option<()> {
        let ptr = self.atomic_ptr::<T>(gpa, Use::Write)?;
        // SAFETY: as in `load`.
        unsafe { T::store(ptr, value) };
        self.report_write(gpa, size_of::<T>() as u64);
        Some(())
    }

    /// Replaces `current` by `new` atomically and reports the write; `Some(false)` when the memory did
    /// not hold `current`, `None` as for [`Ram::store`].
    #[inline]
    pub fn compare_exchange<T: AtomicInt>(&self, gpa: u64, current: T, new: T) -> Option<bool> {
        let ptr = self.atomic_ptr::<T>(gpa, Use::Write)?;
        // SAFETY: as in `load`.
        let done = unsafe { T::compare_exchange(ptr, current, new) };
        if done {
            self.report_write(gpa, size_of::<T>() as u64);
        }
        Some(done)
    }

    #[inline]
    fn atomic_ptr<T: AtomicInt>(&self, gpa: u64, use_: Use) -> Option<*mut T> {
        let (region, offset) = self.region(gpa)?;
        if !offset.is_multiple_of(size_of::<T>()) || (use_ == Use::Write && region.read_only) {
            return None;
        }
        // SAFETY: aligned, and a region is a multiple of the page size, so the whole integer is inside.
        Some(unsafe { region.hva.add(offset) }.cast())
    }
}

/// What a pointer to guest memory is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

fn check_size(size: u64) -> Result<(), Error> {
    if size == 0 || !size.is_multiple_of(PAGE_SIZE) || size > 1 << 46 {
        let context = format!("cannot make {size} bytes of guest memory: not a positive multiple of 4 KiB");
        return Err(Error::new(ErrorKind::BadSize, context));
    }
    Ok(())
}

/// An integer that the host loads and stores atomically.
pub trait AtomicInt: Copy + private::Sealed {
    /// Loads with sequential consistency.
    /// # Safety
    /// `ptr` is valid and aligned.
    unsafe fn load(ptr: *mut Self) -> Self;
    /// Stores with release order (what an x86 store does).
    /// # Safety
    /// `ptr` is valid and aligned.
    unsafe fn store(ptr: *mut Self, value: Self);
    /// Compares and exchanges with sequential consistency.
    /// # Safety
    /// `ptr` is valid and aligned.
    unsafe fn compare_exchange(ptr: *mut Self, current: Self, new: Self) -> bool;
}

mod private {
    pub trait Sealed {}
}

macro_rules! atomic_int {
    ($($int:ty => $atomic:ty),*) => {$(
        impl private::Sealed for $int {}
        impl AtomicInt for $int {
            #[inline]
            unsafe fn load(ptr: *mut $int) -> $int {
                // SAFETY: by the caller.
                unsafe { <$atomic>::from_ptr(ptr) }.load(Ordering::SeqCst)
            }
            #[inline]
            unsafe fn store(ptr: *mut $int, value: $int) {
                // SAFETY: by the caller.
                unsafe { <$atomic>::from_ptr(ptr) }.store(value, Ordering::Release)
            }
            #[inline]
            unsafe fn compare_exchange(ptr: *mut $int, current: $int, new: $int) -> bool {
                // SAFETY: by the caller.
                unsafe { <$atomic>::from_ptr(ptr) }
                    .compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            }
        }
    )*};
}
atomic_int!(u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, u64 => AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_above_the_hole_continues_at_4_gib() {
        let ram = Ram::new(LOW_RAM_END + 2 * MIB).unwrap();
        let ranges: Vec<_> = ram.ranges().collect();
        assert_eq!(ranges[0], RamRange { start: 0, len: LOW_RAM_END });
        assert_eq!(ranges[1], RamRange { start: HIGH_RAM_START, len: 2 * MIB });
        assert!(ram.host_page(LOW_RAM_END).is_none());
        assert!(ram.host_page(HIGH_RAM_START + 2 * MIB).is_none());
        assert_eq!(ram.store(HIGH_RAM_START + 8, 7u64), Some(()));
        let mut bytes = [0u8; 8];
        ram.guest().read_slice(&mut bytes, GuestAddress(HIGH_RAM_START + 8)).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 7);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 1, 4095, !4095] {
            assert_eq!(Ram::new(size).err().map(|e| e.kind()), Some(ErrorKind::BadSize), "{size}");
        }
    }

    #[test]
    fn every_kind_of_write_reaches_the_dirty_log() {
        let ram = Ram::new(MIB).unwrap();
        ram.set_dirty_logging(true);
        assert!(ram.write_needs_report(0x3000));
        ram.guest().write_slice(&[1; 4097], GuestAddress(0x2fff)).unwrap();
        ram.store(0x8000, 1u8).unwrap();
        ram.report_write(0x9ff0, 32);
        assert!(!ram.write_needs_report(0x3000));
        let log = ram.take_dirty();
        assert_eq!(log.iter().collect::<Vec<_>>(), [2, 3, 8, 9, 10]);
        assert!(ram.take_dirty().is_empty());
        assert!(ram.write_needs_report(0x3000));
    }

    #[test]
    fn read_only_memory_is_read_by_guests_and_written_by_nobody() {
        let mut ram = Ram::new(MIB).unwrap();
        let start = HIGH_RAM_START - 0x2000;
        ram.add_rom(start, &[[1; 0x1000], [2; 0x1000]].concat()).unwrap();
        assert_eq!((ram.load::<u8>(start), ram.load::<u8>(start + 0x1fff)), (Some(1), Some(2)));
        assert_eq!(ram.store(start, 7u8), None);
        assert_eq!(ram.compare_exchange(start, 1u8, 7), None);
        assert!(ram.host_page(start).unwrap().read_only && !ram.host_page(0).unwrap().read_only);
        assert!(ram.write_needs_report(start));
        assert!(ram.guest().write_slice(&[7], GuestAddress(start)).is_err());
        assert_eq!(
            (ram.size(), ram.ranges().count(), ram.take_dirty().capacity()),
            (MIB, 1, MIB / PAGE_SIZE)
        );
        assert_eq!(ram.rom_ranges().collect::<Vec<_>>(), [RamRange { start, len: 0x2000 }]);
        for (start, len) in [(0, 0x1000), (start + 0x1000, 0x1000), (MIB + 1, 0x1000), (MIB, 1), (MIB, 0)] {
            assert!(ram.add_rom(start, &vec![0; len]).is_err(), "{start:#x} {len:#x}");
        }
    }

    #[test]
    fn what_is_left_to_devices_is_no_memory_and_video_memory_is_where_it_was_placed() {
        let mut ram = Ram::new(MIB).unwrap();
        let video = Arc::new(VideoMemory::new(2 * PAGE_SIZE).unwrap());
        ram.leave_to_devices(RamRange { start: 0xa_0000, len: 0x2_0000 });
        ram.set_video(video.clone());
        assert!(ram.host_page(0xa_0000).is_none() && ram.host_page(0xb_ffff).is_none());
        assert!(ram.host_page(0x9_ffff).is_some() && ram.host_page(0xc_0000).is_some());
        assert_eq!(ram.store(0xb_8000, 1u8), None);
        let parts = [RamRange { start: 0, len: 0xa_0000 }, RamRange { start: 0xc_0000, len: 0x4_0000 }];
        assert_eq!(ram.guest_ranges(), parts);
        let hva = |range| ram.host_address(range).unwrap() as u64;
        assert_eq!(hva(parts[1]) - hva(parts[0]), 0xc_0000);
        assert_eq!((ram.size(), ram.ranges().count()), (MIB, 1));
        video.set_place(Some(0xe000_0000));
        assert!(!ram.host_page(0xe000_0000).unwrap().read_only && !ram.write_needs_report(0xe000_1000));
        assert!(ram.code_page(0xe000_0000).is_none() && ram.write_needs_report(0xe000_2000));
        video.set_place(None);
        assert!(ram.host_page(0xe000_0000).is_none());
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<(u64, u64)>>);
    impl CodeWatcher for Heard {
        fn code_written(&self, gpa: u64, len: u64) {
            self.0.lock().unwrap().push((gpa, len));
        }
    }

    #[test]
    fn writes_to_watched_code_are_heard_and_others_are_not() {
        let ram = Ram::new(MIB).unwrap();
        let heard = Arc::new(Heard::default());
        ram.set_code_watcher(&heard);
        assert!(ram.watch_code(0x5123));
        assert!(!ram.watch_code(0x5fff));
        ram.guest().write_slice(&[0; 8], GuestAddress(0x4000)).unwrap();
        ram.guest().write_slice(&[0; 8], GuestAddress(0x4ffc)).unwrap();
        ram.store(0x5ff8, 0u64).unwrap();
        ram.unwatch_code(0x5000);
        ram.store(0x5ff8, 0u64).unwrap();
        assert_eq!(*heard.0.lock().unwrap(), [(0x4ffc, 8), (0x5ff8, 8)]);
    }

    #[test]
    fn a_watcher_that_holds_the_memory_does_not_keep_it() {
        struct Holder(Arc<Ram>);
        impl CodeWatcher for Holder {
            fn code_written(&self, _: u64, _: u64) {
                assert_eq!(self.0.size(), MIB);
            }
        }
        let ram = Arc::new(Ram::new(MIB).unwrap());
        let gone = Arc::downgrade(&ram);
        let holder = Arc::new(Holder(ram.clone()));
        ram.set_code_watcher(&holder);
        ram.watch_code(0);
        ram.store(0, 1u8).unwrap();
        drop((ram, holder));
        assert!(gone.upgrade().is_none());
    }

    #[test]
    fn cleared_memory_is_zero_and_still_there() {
        let ram = Ram::new(MIB).unwrap();
        ram.store(0x1000, 7u64).unwrap();
        ram.store(0xf_f000, 7u64).unwrap();
        ram.clear().unwrap();
        assert_eq!((ram.load::<u64>(0x1000), ram.load::<u64>(0xf_f000)), (Some(0), Some(0)));
        ram.store(0x1000, 8u64).unwrap();
        assert_eq!(ram.load::<u64>(0x1000), Some(8));
    }

    #[test]
    fn unaligned_or_missing_integers_are_refused() {
        let ram = Ram::new(MIB).unwrap();
        assert_eq!(ram.load::<u64>(4), None);
        assert_eq!(ram.load::<u32>(MIB), None);
        assert_eq!(ram.compare_exchange(8, 1u32, 2), Some(false));
        assert_eq!(ram.compare_exchange(8, 0u32, 2), Some(true));
        assert_eq!(ram.load::<u32>(8), Some(2));
    }

    #[test]
    fn populated_memory_keeps_its_contents_and_the_rest_is_left_alone() {
        let ram = Ram::new(4 * MIB).unwrap();
        ram.store(MIB + 8, 7u64).unwrap();
        for (gpa, len) in [(MIB, MIB), (MIB + 5, 3), (0, 0), (4 * MIB - 1, 2), (u64::MAX, 2), (MIB, u64::MAX)]
        {
            ram.populate(gpa, len);
        }
        assert_eq!((ram.load::<u64>(MIB + 8), ram.load::<u64>(MIB)), (Some(7), Some(0)));
        assert!(ram.shared_file().is_some());
    }
}
