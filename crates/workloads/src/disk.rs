//! Moving data to and from a disk past the page cache: for measurements, and for tests that look at what
//! arrives.
//!
//! Each 4 KiB of what is written begin with their number, and reading looks whether it is there, so that a
//! measurement that moves nothing cannot pass.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys;

/// The unit that has a number.
const UNIT: usize = 4096;
/// Requests begin at multiples of it in memory, as some disks want it.
const ALIGNMENT: usize = 4096;

/// What to do to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskJob {
    pub(crate) path: PathBuf,
    pub(crate) write: bool,
    pub(crate) random: bool,
    /// Whether each write is followed by a flush of the disk.
    pub(crate) flush: bool,
    /// Bytes of one request, a multiple of 4 KiB.
    pub(crate) block: u64,
    /// Requests in flight.
    pub(crate) threads: u64,
    /// Requests in all.
    pub(crate) requests: u64,
    /// Bytes of the disk that are used, from its beginning.
    pub(crate) span: u64,
    /// No further request is begun after this time.
    pub(crate) limit: Duration,
}

impl DiskJob {
    pub(crate) fn new(path: PathBuf) -> DiskJob {
        DiskJob {
            path,
            write: false,
            random: false,
            flush: false,
            block: UNIT as u64,
            threads: 1,
            requests: 1,
            span: 1 << 20,
            limit: Duration::from_secs(60),
        }
    }

    /// Takes one argument of the form `name=value`.
    ///
    /// # Errors
    /// A sentence about it.
    pub(crate) fn set(&mut self, argument: &str) -> Result<(), String> {
        let (name, value) = argument.split_once('=').unwrap_or((argument, "1"));
        let number = || value.parse::<u64>().ok().filter(|number| *number > 0);
        let number = number().ok_or(format!("{argument}: not a number"))?;
        match name {
            "write" => self.write = true,
            "random" => self.random = true,
            "flush" => self.flush = true,
            "block" => self.block = number,
            "threads" => self.threads = number,
            "requests" => self.requests = number,
            "span" => self.span = number,
            "limit-ms" => self.limit = Duration::from_millis(number),
            _ => return Err(format!("unknown part {name} of a disk's job")),
        }
        Ok(())
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) ns: u64,
}

/// Does a job.
pub(crate) fn run(job: &DiskJob) -> io::Result<Done> {
    if !job.block.is_multiple_of(UNIT as u64) || job.span < job.block {
        return Err(io::Error::other("a block has a multiple of 4096 bytes, and fits into the span"));
    }
    let disk = File::options().read(true).write(job.write).custom_flags(libc::O_DIRECT).open(&job.path)?;
    let next = AtomicU64::new(0);
    let begun = sys::monotonic_ns();
    let results: Vec<io::Result<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..job.threads).map(|_| scope.spawn(|| work(job, &disk, &next, begun))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
            .collect()
    });
    let ns = sys::monotonic_ns() - begun;
    let requests = results.into_iter().sum::<io::Result<u64>>()?;
    Ok(Done { requests, bytes: requests * job.block, ns })
}

/// Resets a SCSI disk and nothing above it: what `sg_reset --device` does, if that is all that is to be tried.
pub(crate) fn reset(path: &Path) -> io::Result<()> {
    sys::reset_scsi_device(&File::open(path)?)
}

fn work(job: &DiskJob, disk: &File, next: &AtomicU64, begun: u64) -> io::Result<u64> {
    let mut memory = vec![0u8; job.block as usize + ALIGNMENT];
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let bytes = &mut memory[skip..][..job.block as usize];
    let blocks = job.span / job.block;
    let mut done = 0;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= job.requests || sys::monotonic_ns() - begun > job.limit.as_nanos() as u64 {
            return Ok(done);
        }
        let block = if job.random { scatter(number) % blocks } else { number % blocks };
        let at = block * job.block;
        let marks = (at / UNIT as u64..).zip(bytes.chunks_exact_mut(UNIT));
        if job.write {
            marks.for_each(|(mark, unit)| unit[..8].copy_from_slice(&(mark + 1).to_le_bytes()));
            disk.write_all_at(bytes, at)?;
            if job.flush {
                disk.sync_data()?;
            }
        } else {
            disk.read_exact_at(bytes, at)?;
            for (mark, unit) in (at / UNIT as u64..).zip(bytes.chunks_exact(UNIT)) {
                if unit[..8] != (mark + 1).to_le_bytes() {
                    return Err(io::Error::other(format!(
                        "the 4 KiB at {} are not what was written",
                        mark * 4096
                    )));
                }
            }
        }
        done += 1;
    }
}

/// The same numbers everywhere, in no order (the finaliser of splitmix64).
fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_and_what_was_not_is_not() {
        let path = std::env::temp_dir().join(format!("workloads-disk-{}", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("a file");
        let mut job = DiskJob::new(path.clone());
        for part in ["write", "block=8192", "threads=3", "requests=128", "span=1048576"] {
            job.set(part).expect("a part");
        }
        let done = match run(&job) {
            // Not every file system has O_DIRECT.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            done => done.expect("it is written"),
        };
        assert_eq!((done.requests, done.bytes), (128, 1 << 20));
        let read = DiskJob { write: false, random: true, ..job.clone() };
        assert_eq!(run(&read).expect("all is there").requests, 128);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_all_at(&[9; 8], 4096))
            .expect("damage");
        assert!(run(&DiskJob { random: false, ..read }).is_err());
        std::fs::remove_file(&path).expect("it is there");
        assert!(job.set("blocks=1").is_err() && job.set("block=x").is_err());
    }
}
