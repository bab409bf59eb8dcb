//! Running many steps, reporting every failure and not only the first, and counting.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host;

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The steps of one task, done one after another.
#[derive(Default)]
pub(crate) struct Steps {
    tally: Tally,
    done: Vec<(String, bool, Duration)>,
}

impl Steps {
    /// Does one step that either works or does not. It counts as one test.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        self.tests(name, || {
            work()?;
            Ok(Tally { passed: 1, ..Tally::default() })
        })
    }

    /// Does one step that runs tests and counts them. A step that breaks counts as one failure.
    pub(crate) fn tests(&mut self, name: &str, work: impl FnOnce() -> Result<Tally>) -> bool {
        println!("\n== {name} ==");
        let started = Instant::now();
        let tally = work().unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            Tally { failed: 1, ..Tally::default() }
        });
        self.tally.add(tally);
        self.done.push((name.to_owned(), tally.failed == 0, started.elapsed()));
        tally.failed == 0
    }

    /// Prints what each step came to and, last and alone on its line, the sum.
    pub(crate) fn finish(self) -> ExitCode {
        println!("\n== summary ==");
        for (name, passed, took) in &self.done {
            println!("{:6} {:>6.1} s  {name}", if *passed { "ok" } else { "FAILED" }, took.as_secs_f64());
        }
        if self.tally.ignored > 0 {
            println!("{} skipped (reasons above)", self.tally.ignored);
        }
        println!("{} passed, {} failed", self.tally.passed, self.tally.failed);
        if self.tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Runs a `cargo test` command, showing its output while it comes, and counts the tests in it.
///
/// # Errors
/// If the command fails without saying that a test failed: it did not compile, or it crashed.
pub(crate) fn cargo_test(command: &mut Command) -> Result<Tally> {
    let shown = host::show(command);
    let folder = Temporary::new()?;
    command.env("TMPDIR", &folder.0);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child.stdout.take().expect("the output was asked for");
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.with_context(|| format!("cannot read what `{shown}` prints"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add(parse_test_result(&line).unwrap_or_default());
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("`{shown}` failed ({status}) outside of any test");
    }
    Ok(tally)
}

/// Where tests have their temporary files: a folder that goes with them, whatever they forget, or how they end.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Temporary> {
        // Short: sockets lie in it, whose paths have at most 107 bytes.
        let path = std::env::temp_dir().join(format!("at-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a line of the form `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
pub(crate) fn parse_test_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        let field = counts.split("; ").find_map(|field| field.trim().strip_suffix(what))?;
        field.trim().parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 5 filtered out; finished in 1.02s";
        assert_eq!(parse_test_result(line), Some(Tally { passed: 12, failed: 3, ignored: 4 }));
        for other in
            ["", "test result: ", "running 5 tests", "test result: ok. x passed; 0 failed; 0 ignored"]
        {
            assert_eq!(parse_test_result(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_run_without_any_verdict_is_an_error() {
        assert!(cargo_test(&mut host::command(["false"])).is_err());
        let quiet = cargo_test(&mut host::command(["true"])).expect("success without tests is no error");
        assert_eq!(quiet, Tally::default());
    }

    #[test]
    fn every_step_is_done_and_counted() {
        let mut steps = Steps::default();
        assert!(!steps.step("breaks", || bail!("on purpose")));
        assert!(steps.step("works", || Ok(())));
        assert!(!steps.tests("tests", || Ok(Tally { passed: 5, failed: 2, ignored: 1 })));
        assert_eq!(steps.tally, Tally { passed: 6, failed: 3, ignored: 1 });
    }
}
