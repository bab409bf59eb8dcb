//! The list of rows.

use std::io;

use crate::measure::Job;
use crate::options::Options;
use crate::{bytecode, calls, floating, integer, lz, memory, mix, scripting, sha256, system};

/// One thing that is measured.
pub(crate) struct Row {
    /// Group and name, with a slash between.
    pub(crate) name: &'static str,
    /// What one operation is.
    pub(crate) operation: &'static str,
    /// Makes all that is needed, outside the time that is measured.
    pub(crate) prepare: fn(&Options) -> io::Result<Job>,
}

const fn row(name: &'static str, operation: &'static str, prepare: fn(&Options) -> io::Result<Job>) -> Row {
    Row { name, operation, prepare }
}

/// All rows. To add one: a repetition should take a host some milliseconds, for a translator may take a
/// hundred times as long, and must leave nothing behind that changes the next one.
pub(crate) const ROWS: &[Row] = &[
    row("integer/fnv", "byte", integer::fnv_row),
    row("integer/quicksort", "element", integer::quicksort_row),
    row("integer/crc32", "byte", integer::crc32_row),
    row("integer/sha256", "byte", sha256::row),
    row("integer/lz", "byte", lz::row),
    row("integer/mix", "iteration", mix::row),
    row("calls/fib", "call", calls::fib_row),
    row("calls/bytecode", "instruction", bytecode::row),
    row("calls/virtual", "call", calls::virtual_row),
    row("calls/qsort", "element", calls::qsort_row),
    row("float/matmul", "multiply-add", floating::matmul_row),
    row("float/nbody", "step", floating::nbody_row),
    row("float/mandelbrot", "iteration", floating::mandelbrot_row),
    row("memory/memcpy-1M", "copy", memory::memcpy_large_row),
    row("memory/memcpy-100", "copy", memory::memcpy_small_row),
    row("memory/strlen-16K", "string", memory::strlen_row),
    row("memory/list-L1", "node", memory::list_small_row),
    row("memory/list-4M", "node", memory::list_large_row),
    row("memory/malloc", "malloc and free", memory::malloc_row),
    row("system/getpid", "call", system::getpid_row),
    row("system/clock_gettime", "call", system::clock_gettime_row),
    row("system/read", "call", system::read_row),
    row("system/stat", "call", system::stat_row),
    row("system/pipe", "write and read", system::pipe_row),
    row("system/ping-pong", "round trip", system::ping_pong_row),
    row("system/page-fault", "page", system::page_fault_row),
    row("system/mmap", "mmap, 4 pages, munmap", system::mmap_row),
    row("system/fork", "fork, exit, wait", system::fork_row),
    row("system/exec", "fork, exec, exit, wait", system::exec_row),
    row("system/thread", "create and join", system::thread_row),
    row("script/sh-loop", "iteration", scripting::loop_row),
    row("script/sh-text", "iteration", scripting::text_row),
    row("script/sh-fork", "process", scripting::fork_row),
    row("script/awk", "iteration", scripting::awk_row),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::measure::measure;

    #[test]
    fn names_are_words_of_group_and_row_and_differ() {
        let names: BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
        for name in names {
            assert_eq!(name.split('/').count(), 2, "{name}");
            assert!(!name.contains([' ', ',']), "{name} must be one word of a kernel command line");
        }
    }

    /// All but the scripts, for which there may be no busybox here. `fork` and threads of the test
    /// harness get on, because the children only call what is safe after a fork.
    #[test]
    fn every_row_gives_the_same_result_twice() {
        let options = Options { budget: Duration::ZERO, ..Options::default() };
        for row in ROWS.iter().filter(|row| !row.name.starts_with("script/") && row.name != "system/exec") {
            let first = measure(row, &options).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            let second = measure(row, &options).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            assert_eq!(first.checksum, second.checksum, "{}", row.name);
            assert!(first.ns_per_op > 0.0, "{}", row.name);
        }
    }
}
