//! The soak: mixed stress in a guest of two vCPUs for a chosen time. What programs compute is compared
//! with the host, and the worker's memory is watched.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workloads::{Row, Selection, Workloads, differences, parse_rows};
use crate::{After, Artifacts, Console, Engine, Guest, Patience, Program, Shell};

const CPUS: u32 = 2;
/// Programs at a time: more than vCPUs, so that the guest switches between them.
const PROGRAMS: u32 = 3;
/// How much the worker's own memory may grow after the first third. Buffers and tables reach their size
/// in that time.
const GROWTH_MAX_KIB: u64 = 48 << 10;
/// Rounds before memory is compared, however long they take.
const WARM_UP_ROUNDS: usize = 3;

/// Runs the soak for `lasting` and tells each round. Returns the verdict, one line.
///
/// # Errors
/// At the first difference, if the guest fails, or if the worker has grown.
pub fn run(lasting: Duration, folder: &Path) -> Result<String> {
    let (artifacts, workloads) = (Artifacts::from_env()?, Workloads::from_env()?);
    let selection = Selection { rows: String::new(), budget: Duration::ZERO, pin: false };
    std::fs::create_dir_all(folder)?;
    let native = workloads.native(&artifacts, &selection, folder, &mut |_| ())?;
    println!("the host has done {} rows; starting a guest with {CPUS} vCPUs", native.rows.len());

    let guest = Guest::busybox(&artifacts).initrd(workloads.initramfs()).cpus(CPUS).memory_mib(768);
    let mut vm = guest.after(After::Shell).start(&Program::Worker(Engine::Bt), folder)?;
    vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
    let pid = vm.pid();
    let (started, mut sizes, mut rows) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < lasting || sizes.len() <= WARM_UP_ROUNDS {
        let round = sizes.len() + 1;
        rows += one_round(vm.console(), &native.rows, round)?;
        sizes.push(own_memory(pid)?);
        println!(
            "{:7.0} s  round {round}: {rows} rows as on the host, the worker has {} MiB of its own",
            started.elapsed().as_secs_f64(),
            sizes[sizes.len() - 1] >> 10
        );
    }
    let settled = sizes[(sizes.len() / 3).max(WARM_UP_ROUNDS).min(sizes.len() - 1)];
    let last = sizes[sizes.len() - 1];
    let verdict = format!(
        "{} rounds, {rows} rows in {:.0} s, 0 differences, memory {} MiB after a third and {} MiB at the end",
        sizes.len(),
        started.elapsed().as_secs_f64(),
        settled >> 10,
        last >> 10
    );
    ensure!(last <= settled + GROWTH_MAX_KIB, "soak: FAILED, the worker grows: {verdict}");
    Shell::take_over(vm.console())?.send("poweroff -f")?;
    vm.wait(Patience::Shutdown)?.expect_code(0)?;
    Ok(format!("soak: passed, {verdict}"))
}

/// Runs the programs beside each other and compares all they print. Returns how many rows that were.
fn one_round(console: &mut Console, native: &[Row], round: usize) -> Result<usize> {
    let mut shell = Shell::take_over(console)?;
    for number in 0..PROGRAMS {
        let file = format!("/tmp/soak.{number}");
        shell.check(&format!(
            "{{ /bin/workloads --busybox /bin/busybox --budget-ms 0 > {file} 2>&1 < /dev/null; \
             echo end >> {file}; }} &"
        ))?;
    }
    let mut compared = 0;
    for number in 0..PROGRAMS {
        let file = format!("/tmp/soak.{number}");
        let begun = Instant::now();
        while shell.run(&format!("sleep 1; tail -n 1 {file} | grep -qx end"))?.status != 0 {
            ensure!(begun.elapsed() < Patience::Boot.limit() * 4, "round {round}: a program does not end");
        }
        let printed = shell.check(&format!("cat {file}"))?;
        let (rows, failures) = parse_rows(&printed);
        if !failures.is_empty() {
            bail!("soak: FAILED in round {round}, in the guest: {}", failures.join("; "));
        }
        let differences = differences(native, &rows);
        ensure!(differences.is_empty(), "soak: FAILED in round {round}: {}", differences.join(", "));
        compared += rows.len();
    }
    // Back to a shell that can be taken over again.
    shell.send("exec sh")?;
    Ok(compared)
}

/// The worker's memory apart from the guest's, in KiB.
fn own_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the worker has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    figure.context("the host's kernel does not tell RssAnon")
}
