//! Repeating a row and keeping the fastest repetition.

use std::io;

use crate::options::Options;
use crate::rows::Row;
use crate::sys::monotonic_ns;

/// Fewer would not show a checksum that changes.
const RUNS_MIN: u32 = 2;

/// Work that is ready to be repeated. Each repetition does the same.
pub(crate) struct Job {
    /// Operations in one repetition.
    pub(crate) operations: u64,
    /// Does the work once and returns a checksum of what came out.
    pub(crate) run: Box<dyn FnMut() -> io::Result<u64>>,
}

impl Job {
    /// Work that cannot fail.
    pub(crate) fn new(operations: u64, mut run: impl FnMut() -> u64 + 'static) -> Self {
        Self::fallible(operations, move || Ok(run()))
    }

    /// Work that asks the kernel for things.
    pub(crate) fn fallible(operations: u64, run: impl FnMut() -> io::Result<u64> + 'static) -> Self {
        Self { operations, run: Box::new(run) }
    }
}

/// What came out of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Of the fastest repetition.
    pub(crate) ns_per_op: f64,
    pub(crate) checksum: u64,
}

/// Sets a row up and repeats it until its time is over.
///
/// # Errors
/// If a system call fails, or if two repetitions give different results.
pub(crate) fn measure(row: &Row, options: &Options) -> io::Result<Measured> {
    let mut job = (row.prepare)(options)?;
    let budget = options.budget.as_nanos() as u64;
    let started = monotonic_ns();
    let (mut runs, mut checksum, mut least) = (0, None, u64::MAX);
    while runs < RUNS_MIN || monotonic_ns() - started < budget {
        let before = monotonic_ns();
        let sum = (job.run)()?;
        least = least.min(monotonic_ns() - before);
        runs += 1;
        let first = *checksum.get_or_insert(sum);
        if sum != first {
            return Err(io::Error::other(format!(
                "repetition {runs} gave {sum:016x} and the first one {first:016x}"
            )));
        }
    }
    Ok(Measured { ns_per_op: least as f64 / job.operations as f64, checksum: checksum.unwrap_or_default() })
}

/// Takes one more value into a checksum.
pub(crate) fn fold(sum: u64, value: u64) -> u64 {
    (sum ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(_: &Options) -> io::Result<Job> {
        Ok(Job::new(10, || 5))
    }

    fn unsteady(_: &Options) -> io::Result<Job> {
        let mut count = 0;
        Ok(Job::new(10, move || {
            count += 1;
            count / 2
        }))
    }

    #[test]
    fn a_result_that_changes_is_an_error() {
        let row = |prepare| Row { name: "a/b", operation: "thing", prepare };
        let options = Options::default();
        assert_eq!(measure(&row(steady), &options).expect("it is steady").checksum, 5);
        let error = measure(&row(unsteady), &options).expect_err("it changes").to_string();
        assert!(error.contains("repetition 2"), "{error}");
    }
}
