//! `cargo xtask test`: unit tests, boot tests and, with `--full`, the fuzzers for a bounded time.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::guests::{self, Freshness, Guests};
use crate::steps::{Steps, cargo_test};
use crate::workspace::{Workspace, given_worker};
use crate::{apt, host, task_fuzz};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also run each fuzz target for a while
    #[arg(long)]
    full: bool,
    /// Seconds for each fuzz target
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    fuzz_seconds: u32,
    /// Leave out the boot tests
    #[arg(long, conflicts_with = "boot_only")]
    unit_only: bool,
    /// Leave out the unit tests
    #[arg(long)]
    boot_only: bool,
    /// Only boot tests whose name contains this
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD, apt::QEMU_TOOLS])?;
    let workspace = Workspace::locate()?;
    let mut steps = Steps::default();
    if !args.boot_only {
        unit_tests(&mut steps);
    }
    if !args.unit_only {
        boot_tests(&mut steps, &workspace, args.name.as_deref(), args.full);
    }
    if args.full {
        task_fuzz::fuzz(&mut steps, &workspace, args.fuzz_seconds, &[]);
    }
    Ok(steps.finish())
}

/// All tests that need no guest, but for those of the harness, which come with the boot tests.
pub(crate) fn unit_tests(steps: &mut Steps) {
    steps.tests("unit tests", || {
        // One failing crate must not hide the others' results.
        cargo_test(host::cargo().args(["test", "--workspace", "--exclude", "vm_test", "--no-fail-fast"]))
    });
}

/// The tests that boot guests, under the worker as users get it.
/// With `full`, the program is killed 100 times while its guest writes, and not just a few.
pub(crate) fn boot_tests(steps: &mut Steps, workspace: &Workspace, name: Option<&str>, full: bool) {
    let (mut ready, mut workloads, mut agent) = (None, None, None);
    let prepared = steps.step("guests and worker", || {
        apt::ensure(&[apt::QEMU, apt::FIRMWARE])?;
        let guests = guests::ensure(workspace, Freshness::Cached)?;
        build_worker()?;
        workloads = Some(guests::workloads::build(workspace, &guests)?);
        agent = Some(guests::agent::build(workspace, &guests)?);
        ready = Some(guests);
        Ok(())
    });
    let Some(guests) = ready.filter(|_| prepared) else { return };
    steps.tests("boot tests", || {
        let mut test = host::cargo();
        test.args(["test", "--package", "vm_test", "--no-fail-fast"]);
        if let Some(name) = name {
            test.args(["--test", "boot", "--", name]);
        }
        if full {
            test.env("ARNIA_CRASH_ROUNDS", "100");
        }
        test.env("ARNIA_WORKLOADS", workloads.unwrap_or_default());
        test.env("ARNIA_AGENT", agent.unwrap_or_default());
        cargo_test(with_harness_paths(&mut test, workspace, &guests))
    });
}

/// Builds the worker optimised: a CPU engine in software is of no use otherwise. One that the
/// environment names is taken as it is.
pub(crate) fn build_worker() -> Result<()> {
    if given_worker().is_some() {
        return Ok(());
    }
    host::run(host::cargo().args(["build", "--release", "--package", "vmm", "--bin", "arnia-vmm"]))
}

/// Tells the harness (crate `vm_test`) where things are.
pub(crate) fn with_harness_paths<'a>(
    command: &'a mut Command,
    workspace: &Workspace,
    guests: &Guests,
) -> &'a mut Command {
    command
        .env("ARNIA_GUESTS", &guests.manifest_path)
        .env("ARNIA_VMM", workspace.worker())
        .env("ARNIA_TEST_OUTPUT", workspace.target().join("vm-test"))
}
