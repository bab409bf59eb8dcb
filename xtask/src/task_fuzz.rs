//! `cargo xtask fuzz`: the coverage-guided fuzzers, for a bounded time each.
//!
//! Fuzz targets live in `crates/<crate>/fuzz`, where cargo-fuzz looks for them. This does the part of
//! cargo-fuzz that is needed, with the project's own compiler: nothing else must be installed.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::steps::{Steps, Tally};
use crate::workspace::Workspace;
use crate::{apt, host};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// Only targets whose name contains one of these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD])?;
    let mut steps = Steps::default();
    fuzz(&mut steps, &Workspace::locate()?, args.seconds, &args.names);
    Ok(steps.finish())
}

/// Builds the fuzz targets and runs them; each counts as one test.
pub(crate) fn fuzz(steps: &mut Steps, workspace: &Workspace, seconds: u32, names: &[String]) {
    let mut projects = Vec::new();
    if !steps.step("fuzz targets", || {
        apt::ensure(&[apt::FUZZ])?;
        projects = fuzz_projects(names)?;
        build(workspace, &projects)
    }) {
        return;
    }
    for project in projects {
        steps.tests(&project.package, || run_targets(workspace, &project, seconds));
    }
}

/// The fuzz targets of one crate.
struct Project {
    package: String,
    folder: PathBuf,
    targets: Vec<String>,
}

/// What there is with one of `names` in the name of a target; all without.
fn fuzz_projects(names: &[String]) -> Result<Vec<Project>> {
    let wanted = |target: &String| names.is_empty() || names.iter().any(|name| target.contains(name));
    let mut projects = Vec::new();
    for package in crate::workspace::metadata()?.packages {
        if !package.name.ends_with("_fuzz") {
            continue;
        }
        let targets = package.targets.iter().filter(|target| target.is_bin());
        let targets: Vec<_> = targets.map(|target| target.name.clone()).filter(wanted).collect();
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        if !targets.is_empty() {
            projects.push(Project { package: package.name.to_string(), folder: folder.into(), targets });
        }
    }
    if projects.is_empty() {
        bail!("no fuzz target is called {}", names.join(" or "));
    }
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

/// Where the programs are built: flags like these would make all else be built anew each time.
fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target().join("fuzz")
}

fn build(workspace: &Workspace, projects: &[Project]) -> Result<()> {
    let mut build = host::cargo();
    build.args(["build", "--release", "--target", TARGET]);
    for Project { package, targets, .. } in projects {
        build.args(["--package", package, "--features", &format!("{package}/libfuzzer")]);
        build.args(targets.iter().flat_map(|target| ["--bin", target]));
    }
    host::run(build.env("RUSTFLAGS", FUZZ_FLAGS).env("CARGO_TARGET_DIR", folder(workspace)))
}

fn run_targets(workspace: &Workspace, project: &Project, seconds: u32) -> Result<Tally> {
    let mut tally = Tally::default();
    for name in &project.targets {
        let folder_of = |kind: &str| project.folder.join(kind).join(name);
        for kind in ["corpus", "artifacts"] {
            std::fs::create_dir_all(folder_of(kind))?;
        }
        println!("fuzzing {name} for {seconds} s");
        let mut command = Command::new(folder(workspace).join(TARGET).join("release").join(name));
        command
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/", folder_of("artifacts").display()))
            .arg(folder_of("corpus"));
        match host::run(&mut command) {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                println!("{name}: {error:#}\nthe input is in {}", folder_of("artifacts").display());
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}
