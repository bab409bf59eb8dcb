//! `cargo xtask bench`: measures, prints ratios and saves `benches/results/<date>-<host>/`.

use std::process::ExitCode;

use anyhow::Result;

use crate::guests::{self, Freshness};
use crate::workspace::Workspace;
use crate::{apt, host, task_build, task_test};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure: boot, cpu, disk, jobs, state, host; everything if none is named
    #[arg(value_name = "BENCH")]
    benches: Vec<String>,
    /// Runs of each subject; the middle one counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    runs: u32,
    /// Programs to measure, of bt, kvm and qemu
    #[arg(long, default_value = "bt,qemu", value_name = "LIST")]
    programs: String,
    /// cpu: parts of names of rows, with commas between; others are left out
    #[arg(long, value_name = "LIST")]
    rows: Option<String>,
    /// cpu: one short round; host: little data, and no Debian
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD, apt::QEMU, apt::QEMU_TOOLS])?;
    let workspace = Workspace::locate()?;
    let guests = guests::ensure(&workspace, Freshness::Cached)?;
    task_test::build_worker()?;
    if args.benches.is_empty() || args.benches.iter().any(|bench| ["disk", "host"].contains(&bench.as_str()))
    {
        // The programs as users get them.
        task_build::build_all(&workspace)?;
    }
    let agent = guests::agent::build(&workspace, &guests)?;
    let workloads = guests::workloads::build(&workspace, &guests)?;
    let mut harness = host::cargo();
    harness.args(["run", "--quiet", "--package", "vm_test", "--", "bench"]);
    harness.env("ARNIA_WORKLOADS", workloads).env("ARNIA_AGENT", agent);
    harness.env("ARNIA_BENCH_IMAGES", workspace.cache().join("images"));
    if let Some(rows) = &args.rows {
        harness.args(["--rows", rows]);
    }
    if args.quick {
        harness.arg("--quick");
    }
    harness.args(["--runs", &args.runs.to_string(), "--programs", &args.programs, "--output"]);
    harness.arg(workspace.root().join("benches/results")).args(&args.benches);
    let harness = task_test::with_harness_paths(&mut harness, &workspace, &guests);
    let status = harness.env("ARNIA_PROGRAM", workspace.target().join("release/arnia")).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
