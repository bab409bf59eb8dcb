//! `cargo xtask test`: unit tests, boot tests and, with `--full`, the fuzzers for a bounded time.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::guests::{self, Freshness, Guests};
use crate::steps::{Steps, Tally, cargo_test};
use crate::workspace::Workspace;
use crate::{apt, host};

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
    /// Only boot tests whose name contains one of these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD])?;
    let workspace = Workspace::locate()?;
    let mut steps = Steps::default();
    if !args.boot_only {
        unit_tests(&mut steps);
    }
    if !args.unit_only {
        boot_tests(&mut steps, &workspace, &args.names);
    }
    if args.full {
        fuzz(&mut steps, &workspace, args.fuzz_seconds);
    }
    Ok(steps.finish())
}

/// All tests that need no guest.
pub(crate) fn unit_tests(steps: &mut Steps) {
    steps.tests("unit tests", || {
        // One failing crate must not hide the others' results.
        cargo_test(host::cargo().args(["test", "--workspace", "--no-fail-fast"]))
    });
}

/// The tests that boot guests, under the worker as users get it.
pub(crate) fn boot_tests(steps: &mut Steps, workspace: &Workspace, names: &[String]) {
    let mut ready = None;
    let prepared = steps.step("guests and worker", || {
        apt::ensure(&[apt::QEMU])?;
        let guests = guests::ensure(workspace, Freshness::Cached)?;
        build_worker()?;
        ready = Some(guests);
        Ok(())
    });
    let Some(guests) = ready.filter(|_| prepared) else { return };
    steps.tests("boot tests", || {
        let mut test = host::cargo();
        test.args(["test", "--package", "vm_test", "--test", "boot", "--"]).args(names);
        cargo_test(with_harness_paths(&mut test, workspace, &guests))
    });
}

/// Builds the worker optimised: a CPU engine in software is of no use otherwise.
pub(crate) fn build_worker() -> Result<()> {
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

/// Builds and runs every fuzz target of every crate; each counts as one test.
fn fuzz(steps: &mut Steps, workspace: &Workspace, seconds: u32) {
    let mut projects = Vec::new();
    if !steps.step("fuzz targets", || {
        apt::ensure(&[apt::FUZZ])?;
        projects = fuzz_projects(workspace)?;
        Ok(())
    }) {
        return;
    }
    for project in projects {
        let name = project.strip_prefix(workspace.root()).unwrap_or(&project).display().to_string();
        steps.tests(&name, || fuzz_project(workspace, &project, seconds));
    }
}

fn fuzz_projects(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let crates = workspace.root().join("crates");
    let entries = std::fs::read_dir(&crates).with_context(|| format!("cannot read {}", crates.display()))?;
    let mut projects: Vec<_> = entries.flatten().map(|entry| entry.path().join("fuzz")).collect();
    projects.retain(|project| project.join("Cargo.toml").is_file());
    projects.sort();
    Ok(projects)
}

/// The host platform. Naming it keeps the flags below off build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Coverage instrumentation that libFuzzer steers by, with the checks of a debug build. All of it
/// works with the stable compiler.
const FUZZ_FLAGS: &str = "--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=1 \
    -C debug-assertions -C overflow-checks";

fn fuzz_project(workspace: &Workspace, project: &Path, seconds: u32) -> Result<Tally> {
    let target = workspace.target().join("fuzz");
    let mut build = host::cargo();
    build.args(["build", "--release", "--target", TARGET, "--manifest-path"]).arg(project.join("Cargo.toml"));
    host::run(build.env("RUSTFLAGS", FUZZ_FLAGS).env("CARGO_TARGET_DIR", &target))?;

    let mut tally = Tally::default();
    for name in fuzz_target_names(project)? {
        let folder = |kind: &str| project.join(kind).join(&name);
        for kind in ["corpus", "artifacts"] {
            std::fs::create_dir_all(folder(kind))?;
        }
        println!("fuzzing {name} for {seconds} s");
        let mut command = Command::new(target.join(TARGET).join("release").join(&name));
        command
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/", folder("artifacts").display()))
            .arg(folder("corpus"));
        match host::run(&mut command) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                println!("{name}: {error:#}\nthe input is in {}", folder("artifacts").display());
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

fn fuzz_target_names(project: &Path) -> Result<Vec<String>> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(project.join("Cargo.toml"))
        .no_deps()
        .exec()
        .with_context(|| format!("cannot read {}", project.display()))?;
    let targets = metadata.packages.iter().flat_map(|package| &package.targets);
    let names: Vec<_> = targets.filter(|target| target.is_bin()).map(|target| target.name.clone()).collect();
    if names.is_empty() {
        bail!("{} has no fuzz targets", project.display());
    }
    Ok(names)
}
