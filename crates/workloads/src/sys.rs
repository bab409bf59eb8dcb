//! System calls that the standard library has no safe form of.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Nanoseconds of the clock that never goes back.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a place for the result, which is all that the call writes. With
    // this clock and a valid pointer it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// This process's number, by a system call each time.
pub(crate) fn getpid() -> i64 {
    // SAFETY: the call takes no arguments and writes no memory.
    unsafe { libc::syscall(libc::SYS_getpid) }
}

/// Keeps this process and its children on the CPU that it is on now.
pub(crate) fn pin_to_one_cpu() -> io::Result<()> {
    // SAFETY: the calls only fill and read the set, whose size is given; a set of zeroes is empty.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let cpu = libc::sched_getcpu();
        libc::CPU_SET(usize::try_from(cpu).unwrap_or(0), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `SG_SCSI_RESET` with the device alone, and no attempt at what is above it (`scsi/sg.h`).
const SG_SCSI_RESET: u64 = 0x2284;
const SG_SCSI_RESET_DEVICE: libc::c_int = 1;
const SG_SCSI_RESET_NO_ESCALATE: libc::c_int = 0x100;

/// Has the kernel reset a SCSI device.
pub(crate) fn reset_scsi_device(device: &File) -> io::Result<()> {
    let what = SG_SCSI_RESET_DEVICE | SG_SCSI_RESET_NO_ESCALATE;
    // SAFETY: this request reads an int through the pointer, which is that of one.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), SG_SCSI_RESET as _, &what) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A child process that is not waited for yet. It is, when this is dropped.
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Starts a copy of this process that calls `work` and ends with the status that it returns.
    ///
    /// Where this process has other threads, `work` must not allocate, lock or panic.
    pub(crate) fn fork(work: impl FnOnce() -> u8) -> io::Result<Self> {
        // SAFETY: the child runs only `work`, which keeps to what is allowed after a fork (above), and
        // then ends without any of the parent's destructors.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let status = work();
                // SAFETY: the call ends the process and touches nothing.
                unsafe { libc::_exit(status.into()) }
            }
            child => Ok(Self(child)),
        }
    }

    /// Starts a program that gets these arguments, the first of them the path, and no environment.
    pub(crate) fn fork_exec(arguments: &[CString]) -> io::Result<Self> {
        let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        pointers.push(ptr::null());
        let environment = [ptr::null()];
        Self::fork(|| {
            // SAFETY: both arrays hold pointers to strings and end with a null pointer, and live until
            // the call has taken their place.
            unsafe { libc::execve(pointers[0], pointers.as_ptr(), environment.as_ptr()) };
            127
        })
    }

    /// Waits for the end and returns the status.
    pub(crate) fn wait(self) -> io::Result<u8> {
        let status = wait(self.0);
        std::mem::forget(self);
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = wait(self.0);
    }
}

fn wait(child: libc::pid_t) -> io::Result<u8> {
    let mut status = 0;
    // SAFETY: the pointer is that of a place for the status.
    if unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    if !libc::WIFEXITED(status) {
        return Err(io::Error::other(format!("a child was ended by signal {}", libc::WTERMSIG(status))));
    }
    Ok(libc::WEXITSTATUS(status) as u8)
}

/// Fresh private memory, in pages of 4 KiB.
pub(crate) struct Pages {
    base: *mut u8,
    length: usize,
}

/// Size of a page.
pub(crate) const PAGE: usize = 4096;

impl Pages {
    /// Maps memory. None of it is there until it is touched.
    pub(crate) fn map(pages: usize) -> io::Result<Self> {
        let length = pages * PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses the place, so nothing that is in use is replaced.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), length })
    }

    /// Forbids larger pages, which would make one fault of many. A kernel without them refuses, and
    /// that is as good.
    pub(crate) fn forbid_huge(&self) {
        // SAFETY: the range is this mapping, and the advice changes no contents.
        unsafe { libc::madvise(self.base.cast(), self.length, libc::MADV_NOHUGEPAGE) };
    }

    /// Writes and reads a byte of each page; returns the sum of what was read before and after.
    pub(crate) fn touch(&mut self) -> u64 {
        let mut sum = 0;
        for offset in (0..self.length).step_by(PAGE) {
            // SAFETY: the offset is inside the mapping, which belongs to this value alone.
            let byte = unsafe { self.base.add(offset) };
            // SAFETY: as above; volatile, so that each access is made.
            unsafe {
                sum += u64::from(byte.read_volatile());
                byte.write_volatile(1);
                sum += u64::from(byte.read_volatile());
            }
        }
        sum
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and no reference into it exists.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_end_with_their_status() {
        assert_eq!(Child::fork(|| 7).and_then(Child::wait).expect("it ends"), 7);
        let arguments = ["/bin/sh", "-c", "exit 9"].map(|word| CString::new(word).expect("no zero in it"));
        assert_eq!(Child::fork_exec(&arguments).and_then(Child::wait).expect("it ends"), 9);
        let missing = [CString::new("/no/such/program").expect("no zero in it")];
        assert_eq!(Child::fork_exec(&missing).and_then(Child::wait).expect("it ends"), 127);
    }

    #[test]
    fn new_pages_are_zero() {
        let mut pages = Pages::map(3).expect("there is memory");
        pages.forbid_huge();
        assert_eq!((pages.touch(), pages.touch()), (3, 6));
    }
}
