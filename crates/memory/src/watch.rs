//! What is noted about written pages: the dirty log and the code-page watch.

use crate::PAGE_SIZE;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

/// Hears of writes to pages that were marked with [`Ram::watch_code`](crate::Ram::watch_code).
pub trait CodeWatcher: Send + Sync {
    /// Bytes `[gpa, gpa + len)` of watched pages were written just now, by whichever thread calls.
    /// Must not block on a vCPU. May be called from several threads at once.
    fn code_written(&self, gpa: u64, len: u64);
}

/// One bit per page.
#[derive(Debug)]
pub(crate) struct PageBits(Box<[AtomicU64]>);

impl PageBits {
    pub(crate) fn new(pages: usize) -> PageBits {
        PageBits(crate::zeroed(pages.div_ceil(64)))
    }

    #[inline]
    pub(crate) fn get(&self, page: usize) -> bool {
        self.0[page / 64].load(Ordering::Relaxed) & (1 << (page % 64)) != 0
    }

    /// Sets a bit; returns whether it was clear.
    #[inline]
    pub(crate) fn set(&self, page: usize) -> bool {
        // The plain read first: most pages are marked already and need no locked instruction. The
        // locked one is SeqCst: a writer that stored its bytes and then finds the bit clear is ordered
        // before whoever sets it.
        !self.get(page)
            && self.0[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst) & (1 << (page % 64)) == 0
    }

    pub(crate) fn clear(&self, page: usize) {
        self.0[page / 64].fetch_and(!(1 << (page % 64)), Ordering::SeqCst);
    }

    /// Takes all set bits, leaving none.
    pub(crate) fn take(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }
}

/// State shared by all regions of one machine's memory.
#[derive(Default)]
pub(crate) struct WatchShared {
    pub(crate) logging: AtomicBool,
    pub(crate) watcher: OnceLock<Weak<dyn CodeWatcher>>,
}

/// The write watch of one region, as `vm_memory` sees it: a bitmap that is told of every write.
#[derive(Clone)]
pub struct WriteWatch {
    pub(crate) region: Arc<RegionWatch>,
}

pub(crate) struct RegionWatch {
    pub(crate) base: u64,
    pub(crate) dirty: PageBits,
    pub(crate) code: PageBits,
    pub(crate) shared: Arc<WatchShared>,
}

impl RegionWatch {
    pub(crate) fn new(base: u64, len: u64, shared: Arc<WatchShared>) -> RegionWatch {
        let pages = len.div_ceil(PAGE_SIZE) as usize;
        RegionWatch { base, dirty: PageBits::new(pages), code: PageBits::new(pages), shared }
    }

    /// Notes a write of `len` bytes at `offset` in this region, after it was done.
    pub(crate) fn written(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let pages = offset / PAGE_SIZE as usize..=(offset + len - 1) / PAGE_SIZE as usize;
        if self.shared.logging.load(Ordering::Relaxed) {
            // The bytes come before the look at the log: who has just taken it and finds the page not in
            // it then reads the new bytes.
            fence(Ordering::SeqCst);
            for page in pages.clone() {
                self.dirty.set(page);
            }
        }
        if let Some(watcher) = self.shared.watcher.get()
            && pages.into_iter().any(|page| self.code.get(page))
            && let Some(watcher) = watcher.upgrade()
        {
            watcher.code_written(self.base + offset as u64, len as u64);
        }
    }
}

impl std::fmt::Debug for WriteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteWatch({:#x})", self.region.base)
    }
}

impl<'a> WithBitmapSlice<'a> for WriteWatch {
    type S = WatchSlice<'a>;
}

impl Bitmap for WriteWatch {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.region.written(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.region.dirty.get(offset / PAGE_SIZE as usize)
    }

    fn slice_at(&self, offset: usize) -> WatchSlice<'_> {
        WatchSlice { region: &self.region, base: offset }
    }
}

/// A view of a region's watch from some offset on.
#[derive(Clone)]
pub struct WatchSlice<'a> {
    region: &'a RegionWatch,
    base: usize,
}

impl std::fmt::Debug for WatchSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WatchSlice({:#x})", self.region.base + self.base as u64)
    }
}

impl<'a> WithBitmapSlice<'_> for WatchSlice<'a> {
    type S = WatchSlice<'a>;
}

impl BitmapSlice for WatchSlice<'_> {}

impl<'a> Bitmap for WatchSlice<'a> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.region.written(self.base + offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.region.dirty.get((self.base + offset) / PAGE_SIZE as usize)
    }

    fn slice_at(&self, offset: usize) -> WatchSlice<'a> {
        WatchSlice { region: self.region, base: self.base + offset }
    }
}
