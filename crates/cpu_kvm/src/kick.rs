//! Ending KVM_RUN from another thread.
//!
//! Who kicks sets a bit, then `immediate_exit` in the page that a vCPU shares with the kernel, and sends a
//! signal if the vCPU is inside the kernel. The signal has a handler that does nothing: its arrival alone
//! ends KVM_RUN. Whichever side is first, one sees the other:
//!
//! ```text
//!   kicker:  bit = 1;  immediate_exit = 1;  if inside: signal
//!   vCPU:    immediate_exit = 0;  inside = 1;  if bit: immediate_exit = 1;  KVM_RUN;  inside = 0
//! ```

use crate::refused;
use cpu::{Error, Kicker};
use kvm_bindings::kvm_run;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Once, OnceLock};

/// Why a vCPU shall leave the guest.
mod bit {
    /// The run is to end.
    pub(super) const KICK: u32 = 1 << 0;
    /// There is something to look at; the run goes on.
    pub(super) const ATTENTION: u32 = 1 << 1;
}

/// The page that a vCPU shares with the kernel, mapped a second time, so that it is there as long as
/// anybody can kick.
#[derive(Debug)]
pub(crate) struct RunPage(*mut kvm_run);

/// A vCPU as those see it who kick it.
#[derive(Debug)]
pub(crate) struct Kick {
    page: RunPage,
    bits: AtomicU32,
    inside: AtomicBool,
    /// The thread that runs the vCPU.
    thread: AtomicI32,
}

// SAFETY: the mapping belongs to the value; all access to it is atomic or volatile.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// Size of what is looked at: the kernel's structure fits into a page.
const PAGE: usize = 4096;

impl RunPage {
    fn map(vcpu: BorrowedFd<'_>) -> io::Result<RunPage> {
        use rustix::mm::{MapFlags, ProtFlags};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, access, MapFlags::SHARED, vcpu, 0) }?;
        Ok(RunPage(page.cast()))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping lives as long as `self`; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0).immediate_exit) }
    }

    /// Size in bytes of one item of the present port access.
    pub(crate) fn io_size(&self) -> usize {
        // SAFETY: inside the mapping; any bytes are a number.
        let size = unsafe { (&raw const (*self.0).__bindgen_anon_1.io.size).read_volatile() };
        (size as usize).clamp(1, 4)
    }

    /// Code and details of the present internal error.
    pub(crate) fn internal_error(&self) -> (u32, Vec<u64>) {
        // SAFETY: inside the mapping; any bytes are numbers.
        let error = unsafe { (&raw const (*self.0).__bindgen_anon_1.internal).read_volatile() };
        let count = (error.ndata as usize).min(error.data.len());
        (error.suberror, error.data[..count].to_vec())
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing else refers to it.
        let _ = unsafe { rustix::mm::munmap(self.0.cast(), PAGE) };
    }
}

impl Kick {
    pub(crate) fn new(vcpu: BorrowedFd<'_>) -> Result<Kick, Error> {
        install_handler();
        let page =
            RunPage::map(vcpu.as_fd()).map_err(|e| refused("the page of a vCPU cannot be mapped", e))?;
        Ok(Kick { page, bits: AtomicU32::new(0), inside: AtomicBool::new(false), thread: AtomicI32::new(0) })
    }

    pub(crate) fn page(&self) -> &RunPage {
        &self.page
    }

    /// The calling thread is the one that runs the vCPU from now on.
    pub(crate) fn run_here(&self) {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), SeqCst);
    }

    /// Makes the vCPU look around: what it looks at was changed before.
    pub(crate) fn attention(&self) {
        self.signal(bit::ATTENTION);
    }

    /// The vCPU has begun to look around.
    pub(crate) fn attend(&self) {
        self.bits.fetch_and(!bit::ATTENTION, SeqCst);
    }

    /// The vCPU goes into the kernel.
    pub(crate) fn enter(&self) {
        self.page.immediate_exit().store(0, SeqCst);
        self.inside.store(true, SeqCst);
        if self.bits.load(SeqCst) != 0 {
            self.page.immediate_exit().store(1, SeqCst);
        }
    }

    /// It has come back.
    pub(crate) fn leave(&self) {
        self.inside.store(false, SeqCst);
    }

    /// Whether a run is to end; it is asked for once.
    pub(crate) fn take_kick(&self) -> bool {
        self.bits.fetch_and(!bit::KICK, SeqCst) & bit::KICK != 0
    }

    fn signal(&self, bit: u32) {
        self.bits.fetch_or(bit, SeqCst);
        self.page.immediate_exit().store(1, SeqCst);
        if self.inside.load(SeqCst) {
            interrupt_thread(self.thread.load(SeqCst));
        }
    }
}

impl Kicker for Kick {
    fn kick(&self) {
        self.signal(bit::KICK);
    }
}

/// The signal that ends KVM_RUN: the first that the C library leaves to programs.
pub(crate) fn kick_signal() -> i32 {
    static SIGNAL: OnceLock<i32> = OnceLock::new();
    *SIGNAL.get_or_init(|| libc::SIGRTMIN())
}

/// Interrupts a thread of this process. One that is gone has nothing to be interrupted in.
fn interrupt_thread(thread: i32) {
    // SAFETY: a signal whose handler does nothing, to a thread of this process or to none.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, kick_signal()) };
}

/// Gives the signal a handler that does nothing. System calls other than KVM_RUN, which never goes on after
/// a signal, continue by themselves.
pub(crate) fn install_handler() {
    extern "C" fn nothing(_: libc::c_int) {}
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an initialised action with a handler that does nothing and so is safe at any time.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut());
        }
    });
}
