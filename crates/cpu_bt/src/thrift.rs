//! What a vCPU gives back while its guest is idle. Ten copies of one machine that wait for work should not hold ten
//! times what each of them decoded and looked up when it last had some.
//!
//! A vCPU is quiet when it has slept nearly all of the last seconds. Then decoded blocks, tables of addresses and the
//! software TLB are forgotten and their memory goes back to the host; translated code stays, so that the guest is
//! fast again at once. It goes as well when all vCPUs have been quiet for much longer and rest: making it anew takes
//! some tens of milliseconds. Nothing of this is looked at but where the guest halts.

use crate::cpu::Cpu;
use crate::jit::way::Kinds;
use crate::mmu::guess::Guess;
use crate::mmu::spaces::Spaces;
use memory::{PAGE_SIZE, Zeroable};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

/// It is decided over so long whether a vCPU is quiet, in nanoseconds.
const WINDOW_NS: u64 = 1_000_000_000;
/// A quiet vCPU is awake for less than one part in so many.
const BUSY_PART: u64 = 16;
/// So long it has to be quiet.
const QUIET_NS: u64 = 5 * WINDOW_NS;
/// And so long to rest.
const REST_NS: u64 = 30 * WINDOW_NS;
/// Interpreting something so often takes about as long as translating it.
const HOT_AT_REST: u32 = 64;
/// With fewer blocks it is not worth the trouble.
const BLOCKS_MIN: usize = 256;
/// Length of the file whose pages stand for all of a table that has one value everywhere.
const PATTERN_LEN: usize = 64 << 10;

/// How quiet a vCPU has been.
#[derive(Default)]
pub(crate) struct Thrift {
    /// When the present window began, in guest time.
    since: u64,
    slept: u64,
    /// How long it has been quiet since it gave something back, and in all.
    quiet: u64,
    quiet_in_all: u64,
    /// It is counted among those that rest.
    rests: bool,
}

impl Thrift {
    /// The vCPU is about to sleep; returns whether it has been quiet for long.
    fn is_quiet(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.since);
        if elapsed >= WINDOW_NS {
            let busy = elapsed.saturating_sub(self.slept);
            match busy < elapsed / BUSY_PART {
                true => self.add(elapsed),
                false => (self.quiet, self.quiet_in_all) = (0, 0),
            }
            (self.since, self.slept) = (now, 0);
        }
        self.quiet >= QUIET_NS
    }

    fn add(&mut self, quiet: u64) {
        self.quiet += quiet;
        self.quiet_in_all += quiet;
    }

    /// Whether it begins or ceases to rest.
    fn turns(&mut self) -> Option<bool> {
        let rests = self.quiet_in_all >= REST_NS;
        (std::mem::replace(&mut self.rests, rests) != rests).then_some(rests)
    }

    /// It has slept.
    fn woke(&mut self, begun: u64, now: u64) {
        let slept = now.saturating_sub(begun);
        if slept >= WINDOW_NS {
            // What comes now is not to be measured by a long rest before.
            self.add(slept);
            (self.since, self.slept) = (now, 0);
        } else {
            self.slept += slept;
        }
    }
}

impl Cpu {
    /// Before the vCPU sleeps: gives back what can be, and tells how long it may sleep at most, in nanoseconds.
    pub(crate) fn thrift_sleep_begins(&mut self, now: u64) -> Option<u64> {
        let is_quiet = self.thrift.is_quiet(now);
        let all_rest = self.all_begin_to_rest();
        if all_rest && self.jit.ready {
            self.empty_code_cache();
        }
        if self.blocks.len() < BLOCKS_MIN && !all_rest {
            return None;
        }
        if is_quiet || all_rest {
            self.give_back();
            self.thrift.quiet = 0;
        }
        Some(WINDOW_NS)
    }

    /// Whether this vCPU was the last one that did not rest, and does so now.
    fn all_begin_to_rest(&mut self) -> bool {
        match self.thrift.turns() {
            Some(true) => self.vm.resting.fetch_add(1, Ordering::Relaxed) + 1 == self.vm.signals.len(),
            Some(false) => {
                self.vm.resting.fetch_sub(1, Ordering::Relaxed);
                false
            }
            None => false,
        }
    }

    /// After it.
    pub(crate) fn thrift_sleep_ends(&mut self, begun: u64, now: u64) {
        self.thrift.woke(begun, now);
    }

    /// How often code is interpreted before it is translated. What a guest does at rest is not worth it: it would soon
    /// have again what it gave back.
    #[inline]
    pub(crate) fn hot(&self) -> u32 {
        match self.thrift.rests {
            true => self.vm.options.hot.max(HOT_AT_REST),
            false => self.vm.options.hot,
        }
    }

    /// Gives back what can be found out anew. No block is executing.
    fn give_back(&mut self) {
        self.counts.caches_given_back.add();
        self.flush_tlb_all();
        self.pages.give_back();
        self.blocks.give_back();
        self.stubs.give_back();
        self.kinds = Kinds::default();
        self.spaces = Spaces::default();
        self.vm.code.cache().give_back();
        *self.vm.code.buffers() = Default::default();
        self.tlb.give_back_guesses();
        if self.jit.ready {
            fill_thriftily(self.jit.leave, self.jit.targets.iter_mut().map(|table| &mut table[..]));
        }
        #[cfg(target_env = "gnu")]
        trim_allocator();
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.jit.targets.iter_mut().for_each(|table| end_thrift(&mut table[..]));
    }
}

/// An entry of a table: integers and nothing between them, and a page holds a whole number of it.
pub(crate) trait Plain: Copy {}
impl Plain for u64 {}
impl Plain for Guess {}

/// Sets all entries of tables to one value. Tables of branch targets and of guesses hold one everywhere when they are
/// empty, which is not zero. So pages of a small file with that value are mapped over them, which take memory of their own
/// only where they are written. A host that refuses gives its memory.
pub(crate) fn fill_thriftily<'a, T: Plain + 'a>(value: T, tables: impl Iterator<Item = &'a mut [T]>) {
    const { assert!((PAGE_SIZE as usize).is_multiple_of(size_of::<T>())) };
    let file = pattern(value);
    for table in tables {
        let (first, last) = whole_pages(table);
        let aligned = (table.as_ptr() as usize).is_multiple_of(size_of::<T>());
        let pieces = || (first..last).step_by(PATTERN_LEN).map(|at| (at, PATTERN_LEN.min(last - at)));
        let mapped = file.as_ref().ok().filter(|_| aligned && first < last).is_some_and(|file| {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
            // SAFETY: whole pages inside the table, which is borrowed for writing, become pages whose every entry is
            // the value, since entries do not cross pages.
            let map =
                |(at, len)| unsafe { rustix::mm::mmap(at as *mut _, len, access, flags, file.as_fd(), 0) };
            pieces().all(|piece| map(piece).is_ok())
        });
        if !mapped {
            table.fill(value);
            continue;
        }
        let start = table.as_ptr() as usize;
        let entries = |to: usize| (to - start) / size_of::<T>();
        table[..entries(first)].fill(value);
        table[entries(last)..].fill(value);
    }
}

/// Gives a table memory of its own again, before what it lies in is freed: the allocator expects no pages of files. What
/// is in it is of no meaning then.
pub(crate) fn end_thrift<T: Plain>(table: &mut [T]) {
    let (first, last) = whole_pages(table);
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    if first < last {
        // SAFETY: whole pages inside the table, which is borrowed for writing, become zero, which is a value of integers. A
        // host that refuses leaves them as they are.
        let _ = unsafe { rustix::mm::mmap_anonymous(first as *mut _, last - first, access, flags) };
    }
}

/// The first page that begins in a table, and where the last ends that is whole inside it.
fn whole_pages<T>(table: &mut [T]) -> (usize, usize) {
    let (range, page) = (table.as_mut_ptr_range(), PAGE_SIZE as usize);
    ((range.start as usize).next_multiple_of(page), range.end as usize & !(page - 1))
}

/// A file that holds a value over and over.
fn pattern<T: Plain>(value: T) -> rustix::io::Result<OwnedFd> {
    let entries = vec![value; PATTERN_LEN / size_of::<T>()];
    // SAFETY: the bytes of the entries, which are integers with nothing between.
    let bytes = unsafe { std::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), PATTERN_LEN) };
    let file = rustix::fs::memfd_create("pattern", MemfdFlags::CLOEXEC)?;
    match rustix::io::write(&file, bytes)? {
        PATTERN_LEN => Ok(file),
        _ => Err(rustix::io::Errno::NOSPC),
    }
}

/// Has this thread's heap grow once and for all: by itself it grows by a page and a system call at a time, thousands of times
/// while a system starts. Takes address space only.
pub(crate) fn grow_heap() {
    #[cfg(target_env = "gnu")]
    {
        /// What a start finds out beside blocks takes about as much.
        const TOTAL: usize = 4 << 20;
        /// Smaller than what the allocator maps by itself.
        const PIECE: usize = 96 << 10;
        let mut pieces = [std::ptr::null_mut(); TOTAL / PIECE];
        // SAFETY: pieces of memory that nobody uses; freeing none is allowed.
        unsafe {
            pieces.fill_with(|| libc::malloc(PIECE));
            pieces.iter().rev().for_each(|piece| libc::free(*piece));
        }
    }
}

/// Has the allocator give back what is free, which it would keep otherwise.
#[cfg(target_env = "gnu")]
fn trim_allocator() {
    /// As much may stay free at the end of a thread's arena now, and at other times, and larger pieces are mapped by
    /// themselves. Left alone, the allocator raises both as far as the largest piece that was ever freed.
    const KEPT_NOW: i32 = 64 << 10;
    const KEPT: i32 = 4 << 20;
    const MAPPED: i32 = 1 << 20;
    // SAFETY: requests to the allocator, callable at any time, and a piece of memory that nobody uses.
    unsafe {
        libc::malloc_trim(0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_NOW);
        // The end of this thread's arena goes when something large is freed there.
        libc::free(libc::malloc(2 * KEPT_NOW as usize));
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

/// Sets all entries of a table to zero and gives its memory back to the host. What they were is not dropped.
pub(crate) fn discard<T: Zeroable>(table: &mut [T]) {
    let (first, last) = whole_pages(table);
    let start = table.as_mut_ptr() as usize;
    let end = start + size_of_val(table);
    // SAFETY: bytes of the table become zero, which is a value of its entries; pages that are whole inside it are
    // replaced by zero pages, for the heap's memory is private and of no file.
    unsafe {
        if first >= last || rustix::mm::madvise(first as *mut _, last - first, Advice::LinuxDontNeed).is_err()
        {
            std::ptr::write_bytes(start as *mut u8, 0, end - start);
            return;
        }
        std::ptr::write_bytes(start as *mut u8, 0, first - start);
        std::ptr::write_bytes(last as *mut u8, 0, end - last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Sleeps and works in turn for a while; returns when it was quiet for long enough, if it was.
    fn live(thrift: &mut Thrift, now: &mut u64, turns: u64, sleep: u64, work: u64) -> Option<u64> {
        for _ in 0..turns {
            if thrift.is_quiet(*now) {
                return Some(*now);
            }
            let begun = *now;
            *now += sleep;
            thrift.woke(begun, *now);
            *now += work;
        }
        None
    }

    #[test]
    fn a_table_of_one_value_is_that_and_may_be_written() {
        let filled = |table: &[u64], value: u64| table.iter().all(|&entry| entry == value);
        // Longer than the file, and beginning and ending within pages.
        let mut whole = vec![7u64; 3 * PATTERN_LEN / 8];
        let len = whole.len();
        for value in [0x1122_3344_5566_7788, 9] {
            let table = &mut whole[5..len - 3];
            fill_thriftily(value, [&mut *table].into_iter());
            assert!(filled(table, value));
            table[1000] = 1;
            table[len - 100] = 2;
            assert_eq!(table.iter().filter(|&&entry| entry != value).count(), 2);
            assert!(filled(&whole[..5], 7) && filled(&whole[len - 3..], 7), "what is beside it is as it was");
        }
        let mut small = [0u64; 3];
        fill_thriftily(4, [&mut small[..]].into_iter());
        assert_eq!(small, [4; 3]);
        end_thrift(&mut whole[5..len - 3]);
        whole.fill(0);
        discard(&mut whole);
        assert!(filled(&whole, 0), "pages of the file are gone");
    }

    #[test]
    fn only_who_sleeps_nearly_all_the_time_is_quiet() {
        let (mut thrift, mut now) = (Thrift::default(), 0);
        assert_eq!(live(&mut thrift, &mut now, 1000, 8 * MS, 2 * MS), None, "busy for a fifth");
        let begun = now;
        let quiet = live(&mut thrift, &mut now, 10_000, 4 * MS, MS / 10).unwrap();
        assert!((QUIET_NS..2 * QUIET_NS).contains(&(quiet - begun)), "{quiet} {begun}");
        thrift.quiet = 0;
        // A long sleep counts at once, and what comes after it is measured by itself.
        assert_eq!(live(&mut thrift, &mut now, 1, 3 * QUIET_NS, 0), None);
        assert!(thrift.is_quiet(now));
        thrift.quiet = 0;
        assert_eq!(live(&mut thrift, &mut now, 120, 10 * MS, 90 * MS), None);
        assert_eq!(live(&mut thrift, &mut now, 3, WINDOW_NS, MS), None, "it has worked a moment ago");
    }

    #[test]
    fn who_is_quiet_for_long_rests_until_it_works() {
        let (mut thrift, mut now) = (Thrift::default(), 0);
        let mut turns = Vec::new();
        for second in 0..100 {
            // Giving back does not begin anew.
            if live(&mut thrift, &mut now, 100, 10 * MS, MS / 10).is_some() {
                thrift.quiet = 0;
            }
            if second == 60 {
                live(&mut thrift, &mut now, 20, 10 * MS, 90 * MS);
            }
            turns.extend(thrift.turns().map(|rests| (second, rests)));
        }
        let [(begun, true), (60, false), (again, true)] = turns[..] else { panic!("{turns:?}") };
        assert!((30..40).contains(&begun) && (90..100).contains(&again), "{turns:?}");
    }

    #[test]
    fn a_discarded_table_is_zero_wherever_it_lies() {
        let mut table = vec![7u64; 3000];
        for range in [1..2000, 5..6, 2500..3000, 0..3000] {
            table.fill(7);
            discard(&mut table[range.clone()]);
            let expected = |index| if range.contains(&index) { 0 } else { 7 };
            assert!(table.iter().enumerate().all(|(index, value)| *value == expected(index)), "{range:?}");
        }
    }
}
