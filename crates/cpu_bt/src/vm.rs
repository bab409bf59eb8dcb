//! What the vCPUs of one machine share.

use crate::lapic::Lapic;
use crate::signals::{Signals, signal};
use clock::{Clock, Timers};
use memory::{CodeWatcher, PAGE_SIZE, Ram, RamRange};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use x86::cpuid::Leaf;

/// Shared by the vCPUs and the threads of devices.
pub(crate) struct VmShared {
    pub(crate) ram: Arc<Ram>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) timers: Timers,
    pub(crate) cpuid: Vec<Leaf>,
    /// By APIC ID.
    pub(crate) lapics: Vec<Arc<Lapic>>,
    /// By APIC ID.
    pub(crate) signals: Vec<Arc<Signals>>,
    pub(crate) code: Arc<CodePages>,
    pub(crate) counters: Counters,
    /// Level of the legacy interrupt controller's output.
    pub(crate) pic_line: std::sync::atomic::AtomicBool,
}

/// What is known of the pages that code was decoded from.
pub(crate) struct CodePages {
    ram: Arc<Ram>,
    ranges: Vec<(RamRange, usize)>,
    /// Raised whenever decoded code of a page was written: blocks of older versions are void.
    versions: Vec<AtomicU32>,
    /// For each page the 64-byte lines that code was decoded from.
    lines: Vec<AtomicU64>,
    /// Held while a page becomes watched or its blocks become void.
    changing: Mutex<()>,
}

/// Event counts.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) blocks: Counter,
    pub(crate) invalidations: Counter,
    pub(crate) exceptions: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) pio: Counter,
    pub(crate) mmio: Counter,
    pub(crate) halts: Counter,
}

/// One count. Exact from one thread, good enough from several.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn list(&self) -> Vec<(String, u64)> {
        [
            ("blocks_decoded", &self.blocks),
            ("code_invalidations", &self.invalidations),
            ("exceptions", &self.exceptions),
            ("interrupts", &self.interrupts),
            ("pio", &self.pio),
            ("mmio", &self.mmio),
            ("halts", &self.halts),
        ]
        .map(|(name, counter)| (name.to_owned(), counter.0.load(Ordering::Relaxed)))
        .into()
    }
}

impl CodePages {
    pub(crate) fn new(ram: Arc<Ram>) -> CodePages {
        let mut pages = 0;
        let mut ranges = Vec::new();
        for range in ram.ranges() {
            ranges.push((range, pages));
            pages += (range.len / PAGE_SIZE) as usize;
        }
        CodePages {
            ram,
            ranges,
            versions: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            lines: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            changing: Mutex::new(()),
        }
    }

    #[inline(always)]
    fn page(&self, gpa: u64) -> Option<usize> {
        for (range, first) in &self.ranges {
            let offset = gpa.wrapping_sub(range.start);
            if offset < range.len {
                return Some(first + (offset / PAGE_SIZE) as usize);
            }
        }
        None
    }

    /// The version of the page of `gpa`; 0 where there is no RAM.
    #[inline(always)]
    pub(crate) fn version(&self, gpa: u64) -> u32 {
        self.page(gpa).map_or(0, |page| self.versions[page].load(Ordering::Acquire))
    }

    /// Marks the lines of `[gpa, gpa + len)`, inside one page, as code.
    pub(crate) fn note_lines(&self, gpa: u64, len: u64) {
        let Some(page) = self.page(gpa) else { return };
        self.lines[page].fetch_or(line_mask(gpa % PAGE_SIZE, len), Ordering::SeqCst);
    }
}

/// Bits of the 64-byte lines that `[offset, offset + len)` of a page touches.
fn line_mask(offset: u64, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let (first, last) = (offset / 64, ((offset + len - 1) / 64).min(63));
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

impl CodeWatcher for CodePages {
    fn code_written(&self, gpa: u64, len: u64) {
        let mut at = gpa;
        while at < gpa + len {
            let here = (PAGE_SIZE - at % PAGE_SIZE).min(gpa + len - at);
            if let Some(page) = self.page(at)
                && self.lines[page].load(Ordering::SeqCst) & line_mask(at % PAGE_SIZE, here) != 0
            {
                let _changing = self.changing.lock().unwrap();
                self.versions[page].fetch_add(1, Ordering::SeqCst);
                self.lines[page].store(0, Ordering::SeqCst);
                self.ram.unwatch_code(at);
            }
            at += here;
        }
    }
}

impl VmShared {
    /// The version of the page of `gpa`.
    #[inline(always)]
    pub(crate) fn page_version(&self, gpa: u64) -> u32 {
        self.code.version(gpa)
    }

    /// Marks bytes as code that was decoded.
    pub(crate) fn note_code_lines(&self, gpa: u64, len: u64) {
        self.code.note_lines(gpa, len);
    }
}

impl crate::cpu::Cpu {
    /// Makes sure that writes to the page of `gpa` are noticed, whoever does them, and returns the
    /// version that code read from now on belongs to. Marks the whole page as code until the block's
    /// lines are known.
    pub(crate) fn watch_code_page(&mut self, gpa: u64) -> u32 {
        let code = self.vm.code.clone();
        let changing = code.changing.lock().unwrap();
        let version = code.version(gpa);
        let newly = self.ram.watch_code(gpa);
        drop(changing);
        if newly {
            self.tlb.flush_writes();
            self.revoke_writes_of_others();
        }
        version
    }

    /// Makes every other vCPU drop its permissions to write without report, and waits until those that
    /// execute guest code have done so.
    fn revoke_writes_of_others(&mut self) {
        let vm = self.vm.clone();
        let others = || vm.signals.iter().enumerate().filter(|(id, _)| *id != self.id as usize);
        for (_, signals) in others() {
            signals.raise(signal::FLUSH_WRITES);
        }
        for (_, signals) in others() {
            while signals.must_wait_for(signal::FLUSH_WRITES) {
                // The other may be waiting for this one.
                if self.signals.take(signal::FLUSH_WRITES) != 0 {
                    self.tlb.flush_writes();
                }
                std::hint::spin_loop();
            }
        }
    }
}
