//! What programs ask of the kernel. Most of the time goes into the kernel's code and into the machine's
//! part of it: entering and leaving, page tables, switches of address spaces, interrupts.

use std::ffi::CString;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::thread;

use crate::measure::{Job, fold};
use crate::options::Options;
use crate::sys::{self, Child, Pages};

/// The shortest way into the kernel and back.
pub(crate) fn getpid_row(_: &Options) -> io::Result<Job> {
    const CALLS: u64 = 20_000;
    let expected = i64::from(std::process::id());
    Ok(Job::new(CALLS, move || (0..CALLS).filter(|_| sys::getpid() == expected).count() as u64))
}

/// Where the kernel's page for it works, not a system call at all.
pub(crate) fn clock_gettime_row(_: &Options) -> io::Result<Job> {
    const CALLS: u64 = 50_000;
    Ok(Job::fallible(CALLS, || {
        let mut before = sys::monotonic_ns();
        for _ in 0..CALLS {
            let now = sys::monotonic_ns();
            if now < before {
                return Err(io::Error::other(format!("the clock went back by {} ns", before - now)));
            }
            before = now;
        }
        Ok(CALLS)
    }))
}

/// A byte from a file that is always ready.
pub(crate) fn read_row(_: &Options) -> io::Result<Job> {
    const CALLS: u64 = 10_000;
    let mut zero = File::open("/dev/zero")?;
    Ok(Job::fallible(CALLS, move || {
        let mut sum = 0;
        for _ in 0..CALLS {
            let mut byte = [1];
            sum += zero.read(&mut byte)? as u64 + u64::from(byte[0]);
        }
        Ok(sum)
    }))
}

/// Looking a path up.
pub(crate) fn stat_row(_: &Options) -> io::Result<Job> {
    const CALLS: u64 = 2000;
    Ok(Job::fallible(CALLS, || {
        (0..CALLS).try_fold(0, |sum, _| Ok(fold(sum, fs::metadata(black_box("/dev/zero"))?.rdev())))
    }))
}

/// Data through the kernel, without waiting.
pub(crate) fn pipe_row(_: &Options) -> io::Result<Job> {
    const ROUNDS: u64 = 2000;
    let (mut reader, mut writer) = io::pipe()?;
    Ok(Job::fallible(ROUNDS, move || {
        (0..ROUNDS).try_fold(0, |sum, round| {
            writer.write_all(&round.to_le_bytes())?;
            Ok(fold(sum, receive(&mut reader)?))
        })
    }))
}

/// Two processes that wait for each other: two switches of address spaces for each round trip.
pub(crate) fn ping_pong_row(_: &Options) -> io::Result<Job> {
    const ROUNDS: u64 = 300;
    let mut table = PingPong::start()?;
    Ok(Job::fallible(ROUNDS, move || {
        (0..ROUNDS).try_fold(0, |sum, round| Ok(fold(sum, table.round(round)?)))
    }))
}

struct PingPong {
    // The order matters: the child ends when the pipe to it is closed, and is waited for after that.
    to_child: PipeWriter,
    from_child: PipeReader,
    _child: Child,
}

impl PingPong {
    fn start() -> io::Result<Self> {
        let (mut child_reader, to_child) = io::pipe()?;
        let (from_child, mut child_writer) = io::pipe()?;
        let parent_end = std::os::fd::AsRawFd::as_raw_fd(&to_child);
        let child = Child::fork(|| {
            // SAFETY: the child's copy of the parent's end, which the child does not use. Left open, it
            // would keep the child from ever seeing the end of the pipe.
            unsafe { libc::close(parent_end) };
            while let Ok(number) = receive(&mut child_reader) {
                if child_writer.write_all(&(number ^ 0x5a5a).to_le_bytes()).is_err() {
                    return 1;
                }
            }
            0
        })?;
        Ok(Self { to_child, from_child, _child: child })
    }

    fn round(&mut self, number: u64) -> io::Result<u64> {
        self.to_child.write_all(&number.to_le_bytes())?;
        receive(&mut self.from_child)
    }
}

fn receive(reader: &mut PipeReader) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The first touch of a page.
pub(crate) fn page_fault_row(_: &Options) -> io::Result<Job> {
    const PAGES: usize = 1024;
    Ok(Job::fallible(PAGES as u64, || {
        let mut pages = Pages::map(PAGES)?;
        pages.forbid_huge();
        Ok(pages.touch())
    }))
}

/// Memory that comes and goes, as large allocations do.
pub(crate) fn mmap_row(_: &Options) -> io::Result<Job> {
    const ROUNDS: u64 = 200;
    Ok(Job::fallible(ROUNDS, || (0..ROUNDS).try_fold(0, |sum, _| Ok(sum + Pages::map(4)?.touch()))))
}

/// A copy of the process that ends at once.
pub(crate) fn fork_row(_: &Options) -> io::Result<Job> {
    const PROCESSES: u64 = 8;
    Ok(Job::fallible(PROCESSES, || {
        (0..PROCESSES).try_fold(0, |sum, number| {
            let status = Child::fork(|| number as u8 * 3)?.wait()?;
            Ok(fold(sum, u64::from(status)))
        })
    }))
}

/// This program again, which ends at once.
pub(crate) fn exec_row(_: &Options) -> io::Result<Job> {
    const PROCESSES: u64 = 6;
    let program = CString::new(std::env::current_exe()?.into_os_string().into_vec())?;
    let arguments = [program, CString::new("--exit")?];
    Ok(Job::fallible(PROCESSES, move || {
        (0..PROCESSES).try_fold(0, |sum, _| match Child::fork_exec(&arguments)?.wait()? {
            0 => Ok(sum + 1),
            status => Err(io::Error::other(format!("the program ended with status {status}"))),
        })
    }))
}

/// A thread that ends at once.
pub(crate) fn thread_row(_: &Options) -> io::Result<Job> {
    const THREADS: u64 = 50;
    Ok(Job::fallible(THREADS, || {
        (0..THREADS).try_fold(0, |sum, number| {
            let joined = thread::Builder::new().spawn(move || number * number)?.join();
            Ok(fold(sum, joined.map_err(|_| io::Error::other("the thread panicked"))?))
        })
    }))
}
