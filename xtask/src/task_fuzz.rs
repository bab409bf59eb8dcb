//! `cargo xtask fuzz`: the coverage-guided fuzzers, for a bounded time each.
//!
//! Fuzz targets live in `crates/<crate>/fuzz`, as cargo-fuzz wants them. This does the part of
//! cargo-fuzz that is needed, with the project's own compiler: nothing else must be installed.

use std::path::{Path, PathBuf};
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

/// Builds every fuzz project of the workspace and runs its targets; each counts as one test.
pub(crate) fn fuzz(steps: &mut Steps, workspace: &Workspace, seconds: u32, names: &[String]) {
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
        steps.tests(&name, || fuzz_project(workspace, &project, seconds, names));
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

fn fuzz_project(workspace: &Workspace, project: &Path, seconds: u32, names: &[String]) -> Result<Tally> {
    let mut targets = fuzz_target_names(project)?;
    targets.retain(|target| names.is_empty() || names.iter().any(|name| target.contains(name)));
    if targets.is_empty() {
        return Ok(Tally::default());
    }
    let target = workspace.target().join("fuzz");
    let mut build = host::cargo();
    build.args(["build", "--release", "--target", TARGET, "--manifest-path"]).arg(project.join("Cargo.toml"));
    host::run(build.env("RUSTFLAGS", FUZZ_FLAGS).env("CARGO_TARGET_DIR", &target))?;

    let mut tally = Tally::default();
    for name in targets {
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
