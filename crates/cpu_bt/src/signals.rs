//! What other threads want from a vCPU: one word that it polls at every block, and sleep and wake-up.
//!
//! Translated code does not look at the word but compares its stack pointer with [`Signals`]'s limit, which it
//! must do anyway to know when the return stack is full: who makes a request raises the limit, so that the
//! comparison fails. Before translated code is entered, [`Signals::arm`] puts it back.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Requests to one vCPU.
#[repr(C, align(64))]
pub(crate) struct Signals {
    word: AtomicU32,
    /// How far down the return stack of translated code may go; [`RAISED`] to end traces.
    limit: AtomicU64,
    /// The vCPU may hold cached host pointers, so requests to drop them have to be waited for.
    in_guest: AtomicBool,
    sleeping: AtomicBool,
    /// Which page [`signal::FLUSH_WRITES`] is about: its host address, [`MANY`], or 0.
    revoked: AtomicU64,
}

/// A limit that no stack pointer reaches.
const RAISED: u64 = u64::MAX;
/// Where the word and the limit are, for translated code.
pub(crate) const WORD_AT: i32 = std::mem::offset_of!(Signals, word) as i32;
pub(crate) const LIMIT_AT: i32 = std::mem::offset_of!(Signals, limit) as i32;

/// Stands for more than one page.
const MANY: u64 = u64::MAX;

/// Which pages may not be written without report any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revoked {
    Page(u64),
    All,
}

/// Bits of [`Signals`].
pub(crate) mod signal {
    /// The local APIC or the legacy controller may have an interrupt to deliver.
    pub(crate) const INTERRUPT: u32 = 1 << 0;
    /// A non-maskable interrupt.
    pub(crate) const NMI: u32 = 1 << 1;
    /// INIT message.
    pub(crate) const INIT: u32 = 1 << 2;
    /// Start-up message; the vector is in the local APIC.
    pub(crate) const SIPI: u32 = 1 << 3;
    /// Leave `run`.
    pub(crate) const KICK: u32 = 1 << 4;
    /// Forget which pages may be written without report.
    pub(crate) const FLUSH_WRITES: u32 = 1 << 5;
    /// Forget all translations of addresses.
    pub(crate) const FLUSH_ALL: u32 = 1 << 6;
    /// Forget all addresses of translated code.
    pub(crate) const DROP_CODE: u32 = 1 << 7;
    /// Translated code was voided: leave it and look it up again.
    pub(crate) const CODE_VOIDED: u32 = 1 << 8;
    /// End a halt, if the local APIC says so.
    pub(crate) const UNHALT: u32 = 1 << 9;
    /// In lock-step: let another have its turn, and end a loop to compare it.
    pub(crate) const TURN: u32 = 1 << 10;

    /// Each request has a bit of its own.
    const _: () = {
        let all =
            [INTERRUPT, NMI, INIT, SIPI, KICK, FLUSH_WRITES, FLUSH_ALL, DROP_CODE, CODE_VOIDED, UNHALT, TURN];
        let (mut seen, mut index) = (0, 0);
        while index < all.len() {
            assert!(all[index].is_power_of_two() && seen & all[index] == 0);
            seen |= all[index];
            index += 1;
        }
    };
}

impl Signals {
    pub(crate) fn new() -> Signals {
        Signals {
            word: AtomicU32::new(0),
            limit: AtomicU64::new(RAISED),
            in_guest: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            revoked: AtomicU64::new(0),
        }
    }

    /// Makes the request to forget that the page at a host address may be written without report. Any thread.
    pub(crate) fn revoke_writes(&self, host: u64) {
        // What has not been seen to yet is not lost.
        let _ = self.revoked.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |before| {
            Some(if before == 0 || before == host { host } else { MANY })
        });
        self.ask(signal::FLUSH_WRITES);
    }

    /// Takes that request: which pages. The vCPU's thread.
    pub(crate) fn take_revoked(&self) -> Option<Revoked> {
        if self.take(signal::FLUSH_WRITES) == 0 {
            return None;
        }
        // After the request itself: who adds a page now makes the request again.
        match self.revoked.swap(0, Ordering::SeqCst) {
            0 => None,
            MANY => Some(Revoked::All),
            host => Some(Revoked::Page(host)),
        }
    }

    /// Lets translated code run with its return stack down to `end`, unless there are requests but for those that
    /// are `deferred`. To be called whenever fewer are deferred than before. The vCPU's thread.
    #[inline]
    pub(crate) fn arm(&self, end: u64, deferred: u32) {
        if self.limit.load(Ordering::Relaxed) != end {
            // Who makes a request does so before raising the limit: either it is seen here, or the limit is raised
            // after this.
            self.limit.swap(end, Ordering::SeqCst);
        }
        if self.word.load(Ordering::SeqCst) & !deferred != 0 {
            self.limit.store(RAISED, Ordering::Relaxed);
        }
    }

    /// Whether traces end, or would have to look again.
    pub(crate) fn ends_traces(&self) -> bool {
        self.limit.load(Ordering::Relaxed) == RAISED
    }

    /// The pending requests: what translated code polls.
    #[inline(always)]
    pub(crate) fn pending(&self) -> u32 {
        self.word.load(Ordering::Relaxed)
    }

    /// Makes requests and wakes the vCPU if it sleeps. Any thread.
    pub(crate) fn raise(&self, bits: u32) {
        self.ask(bits);
        if self.sleeping.load(Ordering::SeqCst) {
            // SAFETY: FUTEX_WAKE on an address that lives as long as `self`.
            unsafe {
                libc::syscall(libc::SYS_futex, &self.word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1)
            };
        }
    }

    /// Makes requests that are to be seen to before the vCPU executes guest code again. One that sleeps goes on
    /// sleeping. Any thread.
    pub(crate) fn ask(&self, bits: u32) {
        self.word.fetch_or(bits, Ordering::SeqCst);
        self.limit.store(RAISED, Ordering::SeqCst);
    }

    /// Takes requests: clears `bits` and returns which of them were set. The vCPU's thread.
    pub(crate) fn take(&self, bits: u32) -> u32 {
        self.word.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Sleeps until any request but `ignored` is pending or the time is over. The vCPU's thread.
    pub(crate) fn sleep(&self, ignored: u32, timeout: Option<Duration>) {
        self.sleeping.store(true, Ordering::SeqCst);
        let until =
            timeout.map(|t| libc::timespec { tv_sec: t.as_secs() as _, tv_nsec: t.subsec_nanos() as _ });
        let until = until.as_ref().map_or(std::ptr::null(), |t| t as *const libc::timespec);
        let word = self.word.load(Ordering::SeqCst);
        if word & !ignored == 0 {
            // SAFETY: FUTEX_WAIT on an address that lives as long as `self`; `until` outlives the call.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    &self.word,
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    word,
                    until,
                )
            };
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Enters guest execution. Look at [`Signals::pending`] afterwards.
    pub(crate) fn enter_guest(&self) {
        self.in_guest.store(true, Ordering::SeqCst);
    }

    /// Leaves guest execution: no host pointer is held any more.
    pub(crate) fn leave_guest(&self) {
        self.in_guest.store(false, Ordering::SeqCst);
    }

    /// Whether a request among `bits` still waits for a vCPU that executes guest code.
    pub(crate) fn must_wait_for(&self, bits: u32) -> bool {
        self.in_guest.load(Ordering::SeqCst) && self.word.load(Ordering::SeqCst) & bits != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_is_woken_by_requests_but_not_by_what_can_wait() {
        let signals = std::sync::Arc::new(Signals::new());
        let sleeper = signals.clone();
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while sleeper.take(signal::KICK) == 0 {
                sleeper.sleep(signal::CODE_VOIDED | signal::FLUSH_WRITES, None);
                rounds += 1;
            }
            (rounds, sleeper.pending())
        });
        while !signals.sleeping.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        signals.ask(signal::CODE_VOIDED);
        signals.revoke_writes(0x1000);
        signals.raise(signal::KICK);
        let (rounds, pending) = thread.join().unwrap();
        // It may have been about to sleep, and then looks again.
        assert!((1..=3).contains(&rounds), "{rounds}");
        assert_eq!(pending, signal::CODE_VOIDED | signal::FLUSH_WRITES);
    }

    #[test]
    fn traces_end_for_requests_that_are_not_deferred() {
        let signals = Signals::new();
        signals.arm(0x1000, 0);
        assert!(!signals.ends_traces());
        signals.ask(signal::INTERRUPT);
        assert!(signals.ends_traces());
        // With interrupts disabled they go on, and end when they are enabled.
        signals.arm(0x1000, signal::INTERRUPT);
        assert!(!signals.ends_traces());
        signals.arm(0x1000, 0);
        assert!(signals.ends_traces());
        assert_eq!(signals.take(u32::MAX), signal::INTERRUPT);
        signals.arm(0x1000, 0);
        assert!(!signals.ends_traces());
    }

    #[test]
    fn no_request_is_lost_while_the_limit_is_put_back() {
        const REQUESTS: u32 = 20_000;
        let signals = std::sync::Arc::new(Signals::new());
        let asking = signals.clone();
        let thread = std::thread::spawn(move || {
            for _ in 0..REQUESTS {
                asking.ask(signal::KICK);
                // Seen to before the next.
                while asking.pending() & signal::KICK != 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut taken = 0;
        while taken < REQUESTS {
            signals.arm(0x1000, 0);
            // As a trace does that loops.
            while !signals.ends_traces() {
                std::hint::spin_loop();
            }
            taken += (signals.take(signal::KICK) != 0) as u32;
        }
        thread.join().unwrap();
    }

    #[test]
    fn revoked_pages_are_told_once_and_none_is_lost() {
        let signals = Signals::new();
        assert_eq!(signals.take_revoked(), None);
        signals.revoke_writes(0x1000);
        signals.revoke_writes(0x1000);
        assert!(signals.pending() & signal::FLUSH_WRITES != 0);
        assert_eq!(signals.take_revoked(), Some(Revoked::Page(0x1000)));
        assert_eq!((signals.take_revoked(), signals.pending()), (None, 0));
        for host in [0x1000, 0x2000, 0x1000] {
            signals.revoke_writes(host);
        }
        assert_eq!(signals.take_revoked(), Some(Revoked::All));
        signals.revoke_writes(0x3000);
        assert_eq!(signals.take_revoked(), Some(Revoked::Page(0x3000)));
    }
}
