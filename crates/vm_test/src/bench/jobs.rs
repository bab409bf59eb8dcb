//! Speed of execution: the same static busybox runs the same small jobs in guests and on the host.
//!
//! Time is taken outside, by when the lines come that say where the script is: a guest's clock may
//! be what is wrong.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::Bed;
use super::report::Report;
use crate::{After, Artifacts, Guest, Patience, Program};

/// What the script prints before each job and, with an empty name, after the last.
const MARK: &str = "ARNIA-JOB ";

/// The jobs: name and shell command. They read nothing but what they make themselves. Each line
/// takes some tenths of a second on a host.
const JOBS: &[(&str, &str)] = &[
    ("integer (sha256sum)", "head -c 33554432 /dev/zero | sha256sum"),
    ("branches (sort)", "seq 1 100000 | sort -r | tail -n 1"),
    ("floating point (awk)", "awk 'BEGIN { for (i = 1; i < 500000; i++) s += 1 / (i * i); print s }'"),
    ("compression (bzip2)", "seq 1 200000 | bzip2 | wc -c"),
    ("system calls (dd)", "dd if=/dev/zero of=/dev/null bs=1 count=300000 2>&1 | tail -n 1 | cut -c 1-6"),
    ("processes (fork, exec)", "i=0; while [ $i -lt 300 ]; do /bin/busybox true; i=$((i + 1)); done"),
    (
        "page faults (dd)",
        "i=0; while [ $i -lt 4 ]; do dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; i=$((i + 1)); done",
    ),
    ("pipes (context switches)", "yes | head -c 3000000 | cat | cat | wc -c"),
];

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let runs = bed.options.runs;
    for run in 0..runs {
        println!("jobs: native, run {} of {runs}", run + 1);
        native(bed.artifacts, report)?;
        for &program in &bed.options.programs {
            println!("jobs: {program}, run {} of {runs}", run + 1);
            guest(bed, program, report).with_context(|| format!("cannot measure {program}"))?;
        }
    }
    Ok(())
}

fn script(busybox: &str) -> String {
    // Each in a shell of its own: in the one on the console, output would go line by line even into
    // pipes, because busybox's own commands share its buffers.
    let jobs = JOBS.iter().map(|(name, command)| {
        let command = command.replace("/bin/busybox", busybox).replace('\'', r"'\''");
        format!("echo '{MARK}{name}'; sh -c '{command}'; ")
    });
    jobs.collect::<String>() + &format!("echo '{MARK}'")
}

fn native(artifacts: &Artifacts, report: &mut Report) -> Result<()> {
    let program = &artifacts.busybox.program;
    let applets = program.with_file_name("applets");
    if !applets.is_dir() {
        std::fs::create_dir(&applets)?;
        let installed = Command::new(program).args(["--install", "-s"]).arg(&applets).status()?;
        ensure!(installed.success(), "busybox cannot install its names in {}", applets.display());
    }
    let mut child = Command::new(program)
        .args(["sh", "-c", &script(&program.to_string_lossy())])
        .env("PATH", &applets)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run busybox on the host")?;
    let output = child.stdout.take().context("the output was asked for")?;
    let mut current: Option<(String, Instant)> = None;
    for line in BufReader::new(output).lines() {
        if let Some(name) = line?.strip_prefix(MARK) {
            finish(&mut current, "native", report);
            current = Some((name.to_owned(), Instant::now()));
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "the jobs failed on the host ({status})");
    Ok(())
}

fn guest(bed: &Bed<'_>, program: Program, report: &mut Report) -> Result<()> {
    let guest = Guest::busybox(bed.artifacts).cpus(1).memory_mib(512).after(After::Shell);
    let mut vm = guest.start(&program, bed.scratch)?;
    let console = vm.console();
    console.expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = crate::Shell::take_over(console)?;
    shell.send(&script("/bin/busybox"))?;
    console.expect(MARK, Patience::Command)?;
    for (expected, _) in JOBS {
        let name = console.expect("\n", Patience::Command)?;
        if name != *expected {
            bail!("the guest is at {name:?} instead of {expected:?}");
        }
        let started = Instant::now();
        console.expect(MARK, Patience::Boot)?;
        finish(&mut Some((name, started)), &program.to_string(), report);
    }
    Ok(())
}

fn finish(job: &mut Option<(String, Instant)>, subject: &str, report: &mut Report) {
    if let Some((name, started)) = job.take() {
        report.add(&name, "s", subject, started.elapsed().as_secs_f64());
    }
}
