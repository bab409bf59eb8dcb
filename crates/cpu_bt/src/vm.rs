//! What the vCPUs of one machine share.

use crate::counters::VcpuCounts;
use crate::jit::cache::CodeCache;
use crate::jit::guessing::{Experience, Learned};
use crate::jit::translator::Buffers;
use crate::lapic::Lapic;
use crate::lockstep::Turns;
use crate::options::Options;
use crate::signals::{Revoked, Signals, signal};
use crate::thrift::grow_heap;
use clock::Clock;
use memory::{CodeWatcher, PAGE_SIZE, Ram, RamRange};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use x86::cpuid::Leaf;

/// Shared by the vCPUs and the threads of devices.
pub(crate) struct VmShared {
    pub(crate) ram: Arc<Ram>,
    pub(crate) clock: Arc<Clock>,
    /// For tests that pause the clock.
    #[cfg(test)]
    pub(crate) timers: clock::Timers,
    pub(crate) cpuid: Vec<Leaf>,
    /// By APIC ID.
    pub(crate) lapics: Vec<Arc<Lapic>>,
    /// By APIC ID.
    pub(crate) signals: Vec<Arc<Signals>>,
    pub(crate) code: Arc<CodePages>,
    pub(crate) counters: Counters,
    /// By vCPU.
    pub(crate) counts: Vec<Arc<VcpuCounts>>,
    pub(crate) options: Options,
    /// Who executes, in lock-step.
    pub(crate) turns: Turns,
    /// How many vCPUs rest: see [`crate::thrift`].
    pub(crate) resting: std::sync::atomic::AtomicUsize,
    /// Level of the legacy interrupt controller's output.
    pub(crate) pic_line: std::sync::atomic::AtomicBool,
}

/// What is known of the pages that code was decoded from.
pub(crate) struct CodePages {
    ram: Arc<Ram>,
    ranges: Vec<(RamRange, usize)>,
    /// Raised whenever decoded code of a page was written: blocks of older versions are void.
    versions: Box<[AtomicU32]>,
    /// For each page the 64-byte lines that code was decoded from.
    lines: Box<[AtomicU64]>,
    /// For each page whether a vCPU may remember that it may be written without report.
    writable: Box<[AtomicU8]>,
    /// The translations. Held while a page becomes watched or its code void.
    cache: Mutex<CodeCache>,
    /// Memory for the next translation: who holds it makes one.
    buffers: Mutex<Buffers>,
    signals: Vec<Arc<Signals>>,
    /// How often decoded code was voided.
    pub(crate) voided: Counter,
}

/// Event counts.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) blocks: Counter,
    pub(crate) exceptions: Counter,
    pub(crate) interrupts: Counter,
    pub(crate) pio: Counter,
    pub(crate) mmio: Counter,
    pub(crate) halts: Counter,
    pub(crate) translations: Counter,
    pub(crate) translated_instructions: Counter,
    pub(crate) translation_nanoseconds: Counter,
    pub(crate) slow_accesses: Counter,
    pub(crate) callouts: Counter,
    pub(crate) walks: Counter,
    pub(crate) code_cache_emptied: Counter,
    pub(crate) chains: Counter,
}

/// One count. Exact from one thread, good enough from several.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    #[inline]
    pub(crate) fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn list(&self) -> Vec<(String, u64)> {
        [
            ("blocks_decoded", &self.blocks),
            ("exceptions", &self.exceptions),
            ("interrupts", &self.interrupts),
            ("pio", &self.pio),
            ("mmio", &self.mmio),
            ("halts", &self.halts),
            ("translations", &self.translations),
            ("translated_instructions", &self.translated_instructions),
            ("translation_nanoseconds", &self.translation_nanoseconds),
            ("slow_accesses", &self.slow_accesses),
            ("callouts", &self.callouts),
            ("page_walks", &self.walks),
            ("code_cache_emptied", &self.code_cache_emptied),
            ("chains", &self.chains),
        ]
        .map(|(name, counter)| (name.to_owned(), counter.get()))
        .into()
    }
}

impl CodePages {
    pub(crate) fn new(ram: Arc<Ram>, signals: Vec<Arc<Signals>>, cache_size_max: usize) -> CodePages {
        let mut pages = 0;
        let mut ranges = Vec::new();
        for range in ram.ranges() {
            ranges.push((range, pages));
            pages += (range.len / PAGE_SIZE) as usize;
        }
        CodePages {
            ram,
            ranges,
            versions: memory::zeroed(pages),
            lines: memory::zeroed(pages),
            writable: memory::zeroed(pages),
            cache: Mutex::new(CodeCache::new(cache_size_max)),
            buffers: Mutex::default(),
            signals,
            voided: Counter::default(),
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

    /// Marks lines of the page of `gpa` as code.
    pub(crate) fn add_lines(&self, gpa: u64, lines: u64) {
        if let Some(page) = self.page(gpa) {
            self.lines[page].fetch_or(lines, Ordering::SeqCst);
        }
    }

    /// Marks the lines of `[gpa, gpa + len)`, inside one page, as code.
    pub(crate) fn note_lines(&self, gpa: u64, len: u64) {
        let Some(page) = self.page(gpa) else { return };
        self.lines[page].fetch_or(line_mask(gpa % PAGE_SIZE, len), Ordering::SeqCst);
    }
}

impl CodePages {
    /// A vCPU is about to remember that the page of `gpa` may be written without report. It has to look after this
    /// whether that is so.
    pub(crate) fn note_writable(&self, gpa: u64) {
        if let Some(page) = self.page(gpa)
            && self.writable[page].load(Ordering::Relaxed) == 0
        {
            // Who watches the page sees this, or this vCPU that the page is watched.
            self.writable[page].swap(1, Ordering::SeqCst);
        }
    }

    /// Whether a vCPU may remember that the page of `gpa`, which is watched now, may be written without report.
    fn may_be_writable(&self, gpa: u64) -> bool {
        self.page(gpa).is_some_and(|page| self.writable[page].load(Ordering::SeqCst) != 0)
    }

    /// All have forgotten it.
    fn forget_writable(&self, gpa: u64) {
        if let Some(page) = self.page(gpa) {
            self.writable[page].store(0, Ordering::SeqCst);
        }
    }

    /// What is needed to make a translation. Taken before the translations themselves.
    pub(crate) fn buffers(&self) -> MutexGuard<'_, Buffers> {
        lock_soon(&self.buffers)
    }

    /// The translations.
    pub(crate) fn cache(&self) -> MutexGuard<'_, CodeCache> {
        lock_soon(&self.cache)
    }

    /// Voids all decoded blocks and translations: memory was replaced.
    pub(crate) fn void_all(&self) {
        for (range, first) in &self.ranges {
            for index in 0..(range.len / PAGE_SIZE) as usize {
                if self.lines[first + index].load(Ordering::SeqCst) != 0 {
                    self.void(first + index, range.start + index as u64 * PAGE_SIZE, u64::MAX);
                }
            }
        }
    }

    /// Hears what was found out about the guess for the access at a physical address. True if there will hardly be more
    /// to find out.
    pub(crate) fn learn(&self, gpa: u64, experience: Experience) -> bool {
        let learned = self.cache().learn(gpa, experience);
        if learned == Learned::Voided {
            self.tell_of_voided();
        }
        learned == Learned::Known
    }

    /// Has all vCPUs leave translations that are void, and forget them.
    fn tell_of_voided(&self) {
        // A trace that loops in itself looks only for requests.
        for signals in &self.signals {
            signals.ask(signal::CODE_VOIDED);
        }
    }

    /// Voids the decoded blocks of a page and the translations made from the given lines of it.
    fn void(&self, page: usize, gpa: u64, lines: u64) {
        self.voided.add();
        let mut cache = self.cache();
        self.versions[page].fetch_add(1, Ordering::SeqCst);
        let invalid = cache.invalidate(gpa / PAGE_SIZE, lines);
        self.lines[page].store(invalid.remaining, Ordering::SeqCst);
        if invalid.remaining == 0 {
            self.ram.unwatch_code(gpa);
        }
        drop(cache);
        if invalid.any {
            self.tell_of_voided();
        }
    }
}

/// Locks what is held for a short time only.
fn lock_soon<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    /// As long as a trace takes to be translated: to sleep and be woken takes longer.
    const SPINS: u32 = 1000;
    for _ in 0..SPINS {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            Err(TryLockError::Poisoned(_)) => break,
        }
    }
    // A panic while it was held has ended the process or a test; what it guards stays consistent.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Bits of the 64-byte lines that `[offset, offset + len)` of a page touches.
pub(crate) fn line_mask(offset: u64, len: u64) -> u64 {
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
            // The bytes come before the look at the lines: who has just marked them and looks at the bytes then reads
            // the new ones.
            fence(Ordering::SeqCst);
            if let Some(page) = self.page(at)
                && self.lines[page].load(Ordering::SeqCst) & line_mask(at % PAGE_SIZE, here) != 0
            {
                self.void(page, at, line_mask(at % PAGE_SIZE, here));
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
        let cache = code.cache();
        let version = code.version(gpa);
        let newly = self.ram.watch_code(gpa);
        drop(cache);
        // Most code was never written by the guest itself.
        if newly && code.may_be_writable(gpa) {
            if let Some(page) = self.ram.code_page(gpa) {
                self.revoke_writes(page.ptr as u64);
            }
            code.forget_writable(gpa);
        }
        version
    }

    /// Makes sure that there is room for a trace; false when there is none now.
    pub(crate) fn prepare_code_cache(&mut self) -> bool {
        let code = self.vm.code.clone();
        let mut cache = code.cache();
        if cache.emptying || !cache.prepare() {
            return false;
        }
        if !self.jit.ready {
            self.jit.ready = true;
            grow_heap();
            (self.jit.enter, self.jit.leave) = (cache.stubs.enter, cache.stubs.leave);
            self.jit.underflows = cache.stubs.underflow;
            self.jit.forget_targets();
        }
        let is_full = cache.is_full();
        drop(cache);
        !is_full || self.empty_code_cache()
    }

    /// Drops all translations, once no vCPU executes any; false if another vCPU is doing that. Holds no lock.
    pub(crate) fn empty_code_cache(&mut self) -> bool {
        let code = self.vm.code.clone();
        if std::mem::replace(&mut code.cache().emptying, true) {
            return false;
        }
        self.ask_others(signal::DROP_CODE, |signals| signals.ask(signal::DROP_CODE));
        self.forget_translations();
        code.cache().empty();
        self.vm.counters.code_cache_emptied.add();
        true
    }

    /// Makes every vCPU drop its permissions to write to the page at a host address without report, and waits until
    /// those that execute guest code have done so.
    fn revoke_writes(&mut self, host: u64) {
        self.tlb.revoke_writes(host);
        self.ask_others(signal::FLUSH_WRITES, |signals| signals.revoke_writes(host));
    }

    /// Makes a request to every other vCPU, and waits until those that execute guest code have seen to
    /// it. Holds no lock, and no host pointer of its own.
    fn ask_others(&mut self, request: u32, ask: impl Fn(&Signals)) {
        let vm = self.vm.clone();
        let id = self.id as usize;
        let others = || vm.signals.iter().enumerate().filter(|(other, _)| *other != id);
        for (_, signals) in others() {
            ask(signals);
        }
        for (_, signals) in others() {
            while signals.must_wait_for(request) {
                // The other may be waiting for this one.
                self.heed_requests();
                std::hint::spin_loop();
            }
        }
    }

    /// Sees to what happened to code and to what other vCPUs may be waiting for.
    pub(crate) fn heed_requests(&mut self) {
        self.signals.take(signal::TURN);
        match self.signals.take_revoked() {
            Some(Revoked::Page(host)) => self.tlb.revoke_writes(host),
            Some(Revoked::All) => self.tlb.flush_writes(),
            None => {}
        }
        if self.signals.take(signal::CODE_VOIDED) != 0 {
            // Some of the noted code addresses lead straight out again.
            self.blocks.forget_translated();
            let (code, mut seen) = (self.vm.code.clone(), self.jit.voided_seen);
            for voided in code.cache().voided_since(&mut seen) {
                self.jit.forget_target(voided);
            }
            self.jit.voided_seen = seen;
        }
        if self.signals.take(signal::DROP_CODE) != 0 {
            self.forget_translations();
        }
    }
}
