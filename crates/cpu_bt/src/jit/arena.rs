//! Memory for generated code: written through one mapping, executed through another, never both in one.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A region of code memory.
pub(crate) struct Arena {
    write: *mut u8,
    execute: *mut u8,
    len: usize,
    used: usize,
    /// How much has been asked of the host.
    populated: usize,
    /// The host gives huge pages, as far as is known.
    huge: bool,
}

/// How much is asked of the host at once: page by page, faults would cost more than making the code.
const POPULATE: usize = 128 << 10;
/// A huge page. Code is spread over many pages, of which processors know few at a time.
const HUGE: usize = 2 << 20;

// SAFETY: the pointers are to mappings that the arena owns; writing takes `&mut self` or is atomic.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `len` bytes. Pages are taken from the host only as they are written.
    pub(crate) fn new(len: usize) -> io::Result<Arena> {
        let fd = rustix::fs::memfd_create("guest-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let write = map(&fd, len, libc::PROT_READ | libc::PROT_WRITE)?;
        let execute = match map(&fd, len, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(execute) => execute,
            Err(error) => {
                // SAFETY: unmaps what was mapped above.
                unsafe { libc::munmap(write.cast(), len) };
                return Err(error);
            }
        };
        Ok(Arena { write, execute, len, used: 0, populated: 0, huge: true })
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
        while self.populated < end {
            let from = self.populated;
            if from.is_multiple_of(HUGE) && from > 0 {
                // What was taken in small pieces is in use to the end now. A machine that does little never comes here.
                self.make_huge(from - HUGE);
                if self.take_huge(from) {
                    self.populated = from + HUGE;
                    continue;
                }
            }
            self.populated = (from + 1).next_multiple_of(POPULATE).min(self.len);
            self.advise(from, self.populated - from, libc::MADV_POPULATE_WRITE, libc::MADV_POPULATE_READ);
        }
    }

    /// Takes a huge page; false if the host gives none.
    fn take_huge(&mut self, from: usize) -> bool {
        if from + HUGE > self.len || !self.huge {
            return false;
        }
        // One page of it has to be there. The rest need not be cleared and mapped one by one.
        // SAFETY: inside the mapping, where no code is yet.
        unsafe { self.write.add(from).write_volatile(0) };
        self.make_huge(from);
        self.huge
    }

    /// Has the host put what is at `from` into a huge page, if it is not in one. Code there may be executing.
    fn make_huge(&mut self, from: usize) {
        if self.huge {
            self.huge = self.advise(from, HUGE, libc::MADV_COLLAPSE, libc::MADV_POPULATE_READ);
        }
    }

    /// Gives advice about a piece of both mappings; false if the host does not take the first.
    fn advise(&self, from: usize, len: usize, write: i32, execute: i32) -> bool {
        // SAFETY: inside the mappings, whose contents stay as they are. A host that does not know the advice gives pages
        // as they are used.
        unsafe {
            let done = libc::madvise(self.write.add(from).cast(), len, write) == 0;
            libc::madvise(self.execute.add(from).cast(), len, execute);
            done
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

/// A new shared mapping of a file, at an address that huge pages can have.
fn map(fd: &OwnedFd, len: usize, prot: i32) -> io::Result<*mut u8> {
    let checked = |at: *mut libc::c_void| match at {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => Ok(at.cast::<u8>()),
    };
    let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = len + HUGE;
    // SAFETY: a new mapping at an address of the kernel's choice, which cannot be accessed.
    let start =
        checked(unsafe { libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, reserve, -1, 0) })?;
    let before = start.align_offset(HUGE);
    // SAFETY: replaces a part of that mapping and unmaps the rest, all of which is nobody else's.
    unsafe {
        let at = start.add(before);
        let shared = libc::MAP_SHARED | libc::MAP_FIXED;
        let mapped = checked(libc::mmap(at.cast(), len, prot, shared, fd.as_raw_fd(), 0));
        if mapped.is_err() {
            libc::munmap(start.cast(), reserved);
            return mapped;
        }
        let end = len.next_multiple_of(memory::PAGE_SIZE as usize);
        if before > 0 {
            libc::munmap(start.cast(), before);
        }
        libc::munmap(at.add(end).cast(), reserved - before - end);
        mapped
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands at an address of the executable mapping.
    fn byte_at(address: u64) -> u8 {
        // SAFETY: in the mapping of an arena that is there, where there is code.
        unsafe { (address as *const u8).read() }
    }

    #[test]
    fn code_stays_what_it_is_when_pages_become_huge() {
        // Not a whole number of huge pages.
        let mut arena = Arena::new(3 * HUGE + HUGE / 2).unwrap();
        let fill = |arena: &mut Arena, salt: usize| -> Vec<(u64, u8)> {
            let mut pieces = Vec::new();
            while arena.room() >= 40_000 {
                let value = (pieces.len() + salt) as u8;
                pieces.push((arena.next(), value));
                arena.push(&vec![value; 40_000]);
            }
            pieces
        };
        let check = |pieces: &[(u64, u8)]| {
            for &(at, value) in pieces {
                assert_eq!((byte_at(at), byte_at(at + 39_999)), (value, value));
            }
        };
        let pieces = fill(&mut arena, 1);
        check(&pieces);
        assert!(pieces.len() * 40_000 > 3 * HUGE);
        arena.patch_u32(pieces[2].0, 0x0101_0101);
        assert_eq!(byte_at(pieces[2].0), 1);
        // Given back inside what may be a huge page, the code before stays, and there is room again.
        arena.truncate(HUGE + 50_000);
        arena.give_back();
        assert_eq!(arena.populated, (HUGE + 50_000).next_multiple_of(memory::PAGE_SIZE as usize));
        check(&pieces[3..HUGE / 40_000]);
        let again = fill(&mut arena, 77);
        check(&again);
        check(&pieces[3..HUGE / 40_000]);
    }
}
