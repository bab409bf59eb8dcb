//! Benchmarks: our engine, QEMU's translator and, where it makes sense, the host itself, in one run
//! on one machine, taking turns. What counts is ratios.

mod boot;
mod cpu;
mod disk;
mod host;
mod jobs;
mod process;
mod ratios;
mod report;
mod state;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{Artifacts, Program};
use report::Report;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// Boot to init, an idle guest's use of the host, memory beyond the guest's own
    Boot,
    /// Speed of execution, by the workload program
    Cpu,
    /// Throughput of disks in a guest; conversion of images against qemu-img; linked clones
    Disk,
    /// Speed of execution, by small programs of busybox
    Jobs,
    /// Snapshots, and what starts from them
    State,
    /// The daemon and the command line: latencies, warm runs, many machines, the network
    Host,
}

/// What is measured, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What to measure; everything if none is named
    benches: Vec<Bench>,
    /// Runs of each subject; the middle one counts
    #[arg(long, default_value_t = 5, value_name = "N")]
    runs: u32,
    /// Programs to measure, of bt, kvm and qemu
    #[arg(long, value_delimiter = ',', default_value = "bt,qemu", value_name = "LIST")]
    programs: Vec<Program>,
    /// cpu: parts of names of rows, with commas between; others are left out
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    rows: Vec<String>,
    /// cpu: one short round; host: little data, and no Debian
    #[arg(long)]
    quick: bool,
    /// Folder for the folder with the results
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

/// Load of a host that has other work than the benchmark.
const BUSY: f64 = 0.7;

const MIB: f64 = (1 << 20) as f64;

/// What every benchmark needs.
struct Bed<'a> {
    artifacts: &'a Artifacts,
    options: &'a Options,
    /// Folder for consoles and messages.
    scratch: &'a Path,
}

/// Runs benchmarks and saves `<output>/<date>-<host>/`.
///
/// # Errors
/// If a guest does not do what it is measured for.
pub fn run(options: &Options) -> Result<()> {
    let artifacts = Artifacts::from_env()?;
    let benches = if options.benches.is_empty() { Bench::value_variants() } else { &options.benches };
    let scratch = std::env::temp_dir().join(format!("arnia-bench-{}", std::process::id()));
    let load = load()?;
    if load > BUSY {
        println!("this host has other work (load {load}); ratios may serve, figures will not");
    }
    let bed = Bed { artifacts: &artifacts, options, scratch: &scratch };
    let mut report = Report::default();
    for bench in benches {
        match bench {
            Bench::Boot => boot::measure(&bed, &mut report)?,
            Bench::Cpu => cpu::measure(&bed, &mut report)?,
            Bench::Disk => disk::measure(&bed, &mut report)?,
            Bench::Jobs => jobs::measure(&bed, &mut report)?,
            Bench::State => state::measure(&bed, &mut report)?,
            Bench::Host => host::measure(&bed, &mut report)?,
        }
    }
    let _ = std::fs::remove_dir_all(&scratch);
    print!("\n{}", report.summary());
    let folder = fresh_folder(&options.output, &format!("{}-{}", told("date", &["+%F"])?, host_name()?));
    report.save(&folder, &machine(&artifacts, load)?)?;
    println!("\nsaved in {}", folder.display());
    let faults = report.faults();
    ensure!(faults.is_empty(), "the figures are worth nothing: {}", faults.join("; "));
    Ok(())
}

/// A folder that is not there yet: results of earlier runs are kept.
fn fresh_folder(parent: &Path, name: &str) -> PathBuf {
    let numbered = (2..).map(|number| parent.join(format!("{name}-{number}")));
    let mut candidates = std::iter::once(parent.join(name)).chain(numbered);
    candidates.find(|folder| !folder.exists()).unwrap_or_else(|| parent.join(name))
}

/// What the figures depend on.
fn machine(artifacts: &Artifacts, load: f64) -> Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(" unknown");
    let cpus = std::thread::available_parallelism()?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let memory = memory.lines().next().and_then(|line| line.strip_prefix("MemTotal:")).unwrap_or(" unknown");
    let qemu = told("qemu-system-x86_64", &["--version"])?;
    Ok(format!(
        "date    {}\ncommit  {}\nrustc   {}\ncpu     {}\ncpus    {cpus}\nmemory  {}\nkernel  {}\nqemu    {}\nguest   {}\nload    {load} when it began\n",
        told("date", &["--utc", "+%FT%TZ"])?,
        told("git", &["describe", "--always", "--dirty"]).unwrap_or_else(|_| "unknown".to_owned()),
        told("rustc", &["--version"])?,
        model.trim_matches([' ', '\t', ':']),
        memory.trim(),
        told("uname", &["--kernel-release"])?,
        qemu.lines().next().unwrap_or_default(),
        artifacts.kernel.version,
    ))
}

/// The host's load average over the last minute.
fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read the host's load")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("the host's load is {first:?}"))
}

fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host's name")?;
    Ok(name.trim().chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect())
}

fn told(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
