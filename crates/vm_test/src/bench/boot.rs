//! From the start of the program to the guest's first own process and to Debian's login prompt; and what a
//! guest costs when it does nothing.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::report::Report;
use super::{Bed, process};
use crate::{After, Guest, Patience, Program, Vm, copy_sparse};

const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 512;

/// Long enough for what a kernel puts off until after its start.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(20);

/// Idle figures hardly differ from run to run, and take long.
const IDLE_RUNS: u32 = 3;

/// Debian with systemd, with the memory that [`Guest::debian`] gives it. A boot takes a while under QEMU.
const LOGIN_RUNS: u32 = 3;

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    busybox(bed, report)?;
    for run in 0..bed.options.runs.min(LOGIN_RUNS) {
        for &program in &bed.options.programs {
            println!("Debian to login: {program}, run {}", run + 1);
            one_login(bed, program, report)
                .with_context(|| format!("cannot measure Debian's boot under {program}"))?;
        }
    }
    Ok(())
}

/// From the start of the program to the login prompt, on a fresh copy of the disk.
fn one_login(bed: &Bed<'_>, program: Program, report: &mut Report) -> Result<()> {
    std::fs::create_dir_all(bed.scratch)?;
    let disk = bed.scratch.join("disk.img");
    copy_sparse(&bed.artifacts.debian.disk, &disk)?;
    let mut vm = Guest::debian(bed.artifacts, &disk).cpus(CPUS).start(&program, bed.scratch)?;
    vm.console().expect("arnia login: ", Patience::Login)?;
    report.add("Debian to login", "s", &program.to_string(), vm.started().elapsed().as_secs_f64());
    if let Program::Worker(_) = program {
        translation(&vm, &program.to_string(), report)?;
    }
    drop(vm);
    std::fs::remove_file(disk)?;
    Ok(())
}

/// What the software engine's translator has needed until now.
fn translation(vm: &Vm, subject: &str, report: &mut Report) -> Result<()> {
    let engine = vm.control().counters()?.engine;
    let count = |name: &str| engine.get(name).copied().unwrap_or(0) as f64;
    let instructions = count("translated_instructions");
    if instructions > 0.0 {
        let each = count("translation_nanoseconds") / instructions / 1000.0;
        report.add("translation, Debian to login", "µs per guest instruction", subject, each);
    }
    Ok(())
}

fn busybox(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let runs = bed.options.runs;
    let guest = Guest::busybox(bed.artifacts).cpus(CPUS).memory_mib(MEMORY_MIB).after(After::Idle);
    for run in 0..runs {
        for &program in &bed.options.programs {
            println!("boot: {program}, run {} of {runs}", run + 1);
            one_boot(&guest, program, run < IDLE_RUNS, bed.scratch, report)
                .with_context(|| format!("cannot measure the boot under {program}"))?;
        }
    }
    Ok(())
}

fn one_boot(guest: &Guest, program: Program, idle: bool, scratch: &Path, report: &mut Report) -> Result<()> {
    let subject = program.to_string();
    let mut vm = guest.start(&program, scratch)?;
    vm.console().expect("ARNIA-INIT", Patience::Boot)?;
    report.add("boot to init", "s", &subject, vm.started().elapsed().as_secs_f64());

    if let Program::Worker(_) = program {
        let counters = vm.control().counters()?;
        let start = counters.start_to_first_instruction_us;
        let start = start.context("the worker does not say when the guest's first instruction was")?;
        report.add("start to first guest instruction", "ms", &subject, start as f64 / 1000.0);
    }
    if idle {
        thread::sleep(SETTLE);
        let (before, since) = (process::cpu_time(vm.pid())?, Instant::now());
        thread::sleep(IDLE);
        let used = process::cpu_time(vm.pid())? - before;
        let percent = 100.0 * used.as_secs_f64() / since.elapsed().as_secs_f64();
        report.add("host CPU of an idle guest", "% of a core", &subject, percent);
        let beyond = process::memory_beyond_guest(vm.pid(), u64::from(MEMORY_MIB) << 20)?;
        report.add("memory beyond guest RAM", "MiB", &subject, beyond as f64 / f64::from(1 << 20));
    }
    Ok(())
}
