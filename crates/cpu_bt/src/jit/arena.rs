//! Memory for generated code: written through one mapping, executed through another, never both in one.

use std::io;
use std::os::fd::AsRawFd;

/// A region of code memory.
pub(crate) struct Arena {
    write: *mut u8,
    execute: *mut u8,
    len: usize,
    used: usize,
    /// How much has been asked of the host.
    populated: usize,
}

/// How much is asked of the host at once: page by page, faults would cost more than making the code.
const POPULATE: usize = 128 << 10;

// SAFETY: the pointers are to mappings that the arena owns; writing takes `&mut self` or is atomic.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `len` bytes. Pages are taken from the host only as they are written.
    pub(crate) fn new(len: usize) -> io::Result<Arena> {
        let fd = rustix::fs::memfd_create("guest-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let map = |prot: i32| {
            // SAFETY: a new shared mapping of a file of that length, at an address of the kernel's choice.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let write = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let execute = match map(libc::PROT_READ | libc::PROT_EXEC) {
            Ok(execute) => execute,
            Err(error) => {
                // SAFETY: unmaps what was mapped above.
                unsafe { libc::munmap(write.cast(), len) };
                return Err(error);
            }
        };
        Ok(Arena { write, execute, len, used: 0, populated: 0 })
    }

    /// The address at which the next piece of code, aligned to 16 bytes, will execute.
    pub(crate) fn next(&self) -> u64 {
        self.execute as u64 + self.used.next_multiple_of(16) as u64
    }

    /// How many bytes are left.
    pub(crate) fn room(&self) -> usize {
        self.len - self.used.next_multiple_of(16).min(self.len)
    }

    /// How many bytes are in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Appends code made for [`Arena::next`].
    ///
    /// # Panics
    /// When there is no room: ask first.
    pub(crate) fn push(&mut self, code: &[u8]) {
        assert!(code.len() <= self.room());
        let at = self.used.next_multiple_of(16);
        if at + code.len() > self.populated {
            self.populate(at + code.len());
        }
        // SAFETY: inside the writable mapping.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = at + code.len();
    }

    /// Takes memory from the host up to `end` and somewhat further.
    fn populate(&mut self, end: usize) {
        let from = self.populated;
        self.populated = end.next_multiple_of(POPULATE).min(self.len);
        for (start, advice) in
            [(self.write, libc::MADV_POPULATE_WRITE), (self.execute, libc::MADV_POPULATE_READ)]
        {
            // SAFETY: inside the mapping. A host that does not know the advice gives pages as they are used.
            unsafe { libc::madvise(start.add(from).cast(), self.populated - from, advice) };
        }
    }

    /// Gives up everything after the first `keep` bytes. No code there may be executing or referred to.
    pub(crate) fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep);
    }

    /// Gives memory that holds no code back to the host.
    pub(crate) fn give_back(&mut self) {
        let from = self.used.next_multiple_of(memory::PAGE_SIZE as usize);
        if from < self.populated {
            // SAFETY: inside the mapping, and nothing there was handed out. A host that refuses leaves it as it is.
            unsafe { libc::madvise(self.write.add(from).cast(), self.populated - from, libc::MADV_REMOVE) };
            self.populated = from;
        }
    }

    fn offset(&self, address: u64, len: usize) -> usize {
        let offset = (address - self.execute as u64) as usize;
        assert!(offset + len <= self.used);
        offset
    }

    /// Replaces four bytes at a multiple of four in one step, visible to processors that execute there.
    pub(crate) fn patch_u32(&self, address: u64, value: u32) {
        let offset = self.offset(address, 4);
        assert!(offset.is_multiple_of(4));
        // SAFETY: inside the writable mapping and aligned.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(self.write.add(offset).cast()) }
            .store(value, std::sync::atomic::Ordering::SeqCst);
    }

    /// Replaces the first instruction at `address` (a multiple of eight; the instruction has at least
    /// seven bytes) by a jump to `target`, in one step.
    pub(crate) fn patch_jump(&self, address: u64, target: u64) {
        let offset = self.offset(address, 8);
        assert!(offset.is_multiple_of(8));
        // SAFETY: inside the writable mapping and aligned.
        let word = unsafe { std::sync::atomic::AtomicU64::from_ptr(self.write.add(offset).cast()) };
        let mut bytes = word.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes();
        bytes[0] = 0xe9;
        bytes[1..5].copy_from_slice(&(target.wrapping_sub(address + 5) as i32).to_le_bytes());
        word.store(u64::from_le_bytes(bytes), std::sync::atomic::Ordering::SeqCst);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: unmaps the arena's own mappings; whoever executes in them has ended.
        unsafe {
            libc::munmap(self.write.cast(), self.len);
            libc::munmap(self.execute.cast(), self.len);
        }
    }
}
