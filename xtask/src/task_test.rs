//! `cargo xtask test`: unit tests, boot tests and, with `--full`, the fuzzers for a bounded time.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::guests::{self, Freshness, Guests};
use crate::kvm_rig::Depth;
use crate::steps::{Steps, cargo_test};
use crate::workspace::{Workspace, given_worker};
use crate::{apt, host, kvm_rig, schemathesis, task_fuzz};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also what takes long: all of the software and forced-mode boot tests, many more cases, each fuzz target
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
    /// Only the KVM engine, in a machine that QEMU emulates with virtualization in it
    #[arg(long, conflicts_with_all = ["unit_only", "boot_only", "full"])]
    kvm: bool,
    /// With --kvm: only the engine's own tests and changes of engines, no boots
    #[arg(long, requires = "kvm")]
    short: bool,
    /// Only schemathesis against the daemon's API
    #[arg(long, conflicts_with_all = ["unit_only", "boot_only", "full", "kvm"])]
    api: bool,
    /// Only the soak: mixed stress in a guest for so long (90s, 60m, 2h), compared with the host, one verdict
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["full", "unit_only", "boot_only"])]
    soak: Option<u64>,
    /// Only boot tests whose name contains this
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD, apt::QEMU_TOOLS])?;
    let workspace = Workspace::locate()?;
    if let Some(seconds) = args.soak {
        return soak(&workspace, seconds);
    }
    let mut steps = Steps::default();
    if args.api {
        api_tests(&mut steps, &workspace);
        return Ok(steps.finish());
    }
    if args.kvm {
        let depth = if args.short { Depth::Short } else { Depth::Full };
        kvm_tests(&mut steps, &workspace, depth, args.name.as_deref());
        return Ok(steps.finish());
    }
    if !args.boot_only {
        unit_tests(&mut steps, args.full);
    }
    if !args.unit_only {
        boot_tests(&mut steps, &workspace, args.name.as_deref(), args.full);
    }
    if args.full {
        api_tests(&mut steps, &workspace);
        kvm_tests(&mut steps, &workspace, Depth::Full, None);
        task_fuzz::fuzz(&mut steps, &workspace, args.fuzz_seconds, &[]);
    }
    Ok(steps.finish())
}

/// Seconds, of text like 90s, 60m or 2h.
fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time: write a number with s, m or h, like 60m");
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let (unit, seconds) = units.into_iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(wrong)?;
    let number: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|&seconds| seconds > 0).ok_or_else(wrong)
}

fn soak(workspace: &Workspace, seconds: u64) -> Result<ExitCode> {
    let guests = guests::ensure(workspace, Freshness::Cached)?;
    build_worker()?;
    let workloads = guests::workloads::build(workspace, &guests)?;
    let mut harness = host::cargo();
    harness.args(["run", "--quiet", "--package", "vm_test", "--", "soak", &seconds.to_string()]);
    harness.env("ARNIA_WORKLOADS", workloads);
    let status = with_harness_paths(&mut harness, workspace, &guests).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All tests that need no guest, but for those of the harness, which come with the boot tests.
/// With `full`, many more cases of the differential tests, and more rounds of what is tried in rounds.
pub(crate) fn unit_tests(steps: &mut Steps, full: bool) {
    steps.tests("unit tests", || {
        let mut test = host::cargo();
        // One failing crate must not hide the others' results.
        test.args(["test", "--workspace", "--exclude", "vm_test", "--no-fail-fast"]);
        if full {
            test.env("ARNIA_TEST_FULL", "1").env("DIFFTEST_FULL", "1");
        }
        cargo_test(&mut test)
    });
}

/// The tests that boot guests, under the worker as users get it.
/// With `full`, also those of many minutes, and the program is killed 100 times while its guest writes.
pub(crate) fn boot_tests(steps: &mut Steps, workspace: &Workspace, name: Option<&str>, full: bool) {
    let (mut ready, mut workloads, mut agent, mut daemon) = (None, None, None, None);
    let prepared = steps.step("guests and worker", || {
        apt::ensure(&[apt::QEMU, apt::FIRMWARE, apt::DISCS, apt::IMAGES, apt::QEMU_AGENT, apt::BINUTILS])?;
        let guests = guests::ensure(workspace, Freshness::Cached)?;
        build_worker()?;
        host::run(host::cargo().args(["build", "--package", "cli"]))?;
        workloads = Some(guests::workloads::build(workspace, &guests)?);
        agent = Some(guests::agent::build(workspace, &guests)?);
        daemon = Some(guests::agent::with_daemon(workspace, &guests)?);
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
            test.env("ARNIA_TEST_FULL", "1").env("ARNIA_CRASH_ROUNDS", "100");
        }
        test.env("ARNIA_WORKLOADS", workloads.unwrap_or_default());
        test.env("ARNIA_AGENT", agent.unwrap_or_default());
        test.env("ARNIA_DAEMON_GUEST", daemon.unwrap_or_default());
        cargo_test(with_harness_paths(&mut test, workspace, &guests))
    });
}

/// Made-up requests to the daemon's API, none of which may be a server error.
pub(crate) fn api_tests(steps: &mut Steps, workspace: &Workspace) {
    steps.step("schemathesis", || {
        build_worker()?;
        host::run(host::cargo().args(["build", "--package", "cli"]))?;
        schemathesis::run(workspace)
    });
}

/// The KVM engine's tests, where there is a real `/dev/kvm`.
pub(crate) fn kvm_tests(steps: &mut Steps, workspace: &Workspace, depth: Depth, name: Option<&str>) {
    steps.tests("KVM engine in an emulated machine", || {
        apt::ensure(&[apt::QEMU, apt::QEMU_AGENT, apt::BINUTILS])?;
        let guests = guests::ensure(workspace, Freshness::Cached)?;
        kvm_rig::run(workspace, &guests, depth, name)
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
        .env("ARNIA_PROGRAM", workspace.target().join("debug/arnia"))
        .env("ARNIA_TEST_OUTPUT", workspace.target().join("vm-test"))
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("90s"), Ok(90));
        assert_eq!(duration("60m"), Ok(3600));
        assert_eq!(duration("2h"), Ok(7200));
        for text in ["", "5", "m", "0m", "-1m", "1d", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
