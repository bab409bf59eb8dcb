//! What a vCPU gives back while its guest is idle. Ten copies of one machine that wait for work should not hold ten
//! times what each of them decoded and looked up when it last had some.
//!
//! A vCPU is quiet when it has slept nearly all of the last seconds. Then decoded blocks, tables of addresses and the
//! software TLB are forgotten and their memory goes back to the host; translated code stays, so that the guest is
//! fast again at once. It goes as well when all vCPUs have been quiet for much longer and rest: making it anew takes
//! some tens of milliseconds. Nothing of this is looked at but where the guest halts.

use crate::cpu::Cpu;
use crate::jit::state::TARGETS;
use crate::jit::way::Kinds;
use crate::mmu::spaces::Spaces;
use memory::{PAGE_SIZE, Zeroable};
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::io;
use std::os::fd::AsFd;
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
        if self.jit.ready {
            // A host that refuses leaves the tables as they are.
            let _ = self.give_back_targets();
        }
        #[cfg(target_env = "gnu")]
        trim_allocator();
    }

    /// The tables of branch targets hold one value everywhere when they are empty, which is not zero. So pages of a
    /// small file with that value are mapped over them, which take memory of their own only where they are written.
    fn give_back_targets(&mut self) -> io::Result<()> {
        self.jit.forget_targets();
        let pattern = self.jit.targets[0][0].to_ne_bytes().repeat(PATTERN_LEN / size_of::<u64>());
        let file = rustix::fs::memfd_create("targets", MemfdFlags::CLOEXEC)?;
        rustix::io::write(&file, &pattern)?;
        for table in &mut self.jit.targets {
            let start = table.as_mut_ptr() as usize;
            let first = start.next_multiple_of(PAGE_SIZE as usize);
            let end = (start + TARGETS * size_of::<u64>()) & !(PAGE_SIZE as usize - 1);
            for at in (first..end).step_by(PATTERN_LEN) {
                let (len, access) = (PATTERN_LEN.min(end - at), ProtFlags::READ | ProtFlags::WRITE);
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                // SAFETY: whole pages inside the table, which this vCPU owns, become pages with the same contents:
                // the value of every entry, since entries do not cross pages.
                unsafe { rustix::mm::mmap(at as *mut _, len, access, flags, file.as_fd(), 0) }?;
            }
        }
        Ok(())
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
    let (start, page) = (table.as_mut_ptr() as usize, PAGE_SIZE as usize);
    let end = start + size_of_val(table);
    let (first, last) = (start.next_multiple_of(page), end & !(page - 1));
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
