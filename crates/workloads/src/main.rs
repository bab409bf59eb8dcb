//! Small jobs that run the same on a host and in guests, so that speed and results can be compared.
//!
//! The program is linked statically and runs on a bare initramfs. It prints
//!
//! ```text
//! begin
//! row <group>/<name> <nanoseconds per operation> <checksum> <what one operation is>
//! ...
//! done <nanoseconds since the beginning>
//! ```
//!
//! A row's work is fixed, however fast the machine is, so its checksum is the same everywhere; only how
//! often it is repeated depends on time, and the fastest repetition counts. For a row that fails, or whose
//! repetitions have different checksums, it prints `fail <group>/<name> <message>` and in the end returns
//! status 1.
//!
//! `cargo xtask bench cpu` measures with it, and the boot tests compare checksums. With `--disk DEVICE PART...`
//! it moves data to or from a disk instead ([`disk`]) and prints
//!
//! ```text
//! disk <requests> <bytes> <nanoseconds>
//! ```
//!
//! and with `--reset DEVICE` it has the kernel reset a SCSI disk, whatever the disk is doing.

mod bytecode;
mod calls;
mod disk;
mod floating;
mod integer;
mod lz;
mod measure;
mod memory;
mod mix;
mod options;
mod random;
mod rows;
mod scripting;
mod sha256;
mod sys;
mod system;

use std::io;
use std::process::ExitCode;

use options::{Options, Task};

fn main() -> ExitCode {
    let done = match Options::parse(std::env::args().skip(1)) {
        // What the row of fork and exec starts; it measures the start and the end of a process.
        Ok(Task::Exit) => return ExitCode::SUCCESS,
        Ok(Task::List) => {
            rows::ROWS.iter().for_each(|row| println!("{}", row.name));
            Ok(())
        }
        Ok(Task::Disk(job)) => {
            disk::run(&job).map(|done| println!("disk {} {} {}", done.requests, done.bytes, done.ns))
        }
        Ok(Task::Reset(path)) => disk::reset(&path),
        Ok(Task::Measure(options)) => measure(&options),
        Err(message) => Err(io::Error::other(message)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workloads: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> io::Result<()> {
    if options.pin {
        sys::pin_to_one_cpu()?;
    }
    println!("begin");
    let started = sys::monotonic_ns();
    let mut failed = 0;
    for row in rows::ROWS.iter().filter(|row| options.wants(row.name)) {
        match measure::measure(row, options) {
            Ok(done) => {
                println!("row {} {:.4} {:016x} {}", row.name, done.ns_per_op, done.checksum, row.operation);
            }
            Err(error) => {
                failed += 1;
                println!("fail {} {error}", row.name);
            }
        }
    }
    println!("done {}", sys::monotonic_ns() - started);
    if failed > 0 { Err(io::Error::other(format!("{failed} rows failed"))) } else { Ok(()) }
}
