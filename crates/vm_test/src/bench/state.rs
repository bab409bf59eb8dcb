//! Snapshots and what starts from them: how long a guest stands still for one, how large it is, how soon a copy
//! executes and answers, and what copies cost the host. QEMU saves by migration into a file, which is its only
//! way that needs no disk, and starts from that.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report::Report;
use super::{Bed, MIB, process};
use crate::{After, Guest, Patience, Program, RunState, Shell, Vm};

/// Sizes of guest memory in MiB: what a restore takes must not depend on it.
const SIZES: [u32; 3] = [256, 1024, 4096];
/// Copies of one snapshot that run at once, and the size of their memory in MiB.
const COPIES: usize = 10;
const COPIES_MIB: u32 = 1024;
/// Long enough for what a kernel puts off until after its start.
const SETTLE: Duration = Duration::from_secs(5);
/// What copies do before their memory is measured: nothing, for so long that the engine gives back all it can.
const IDLE: Duration = Duration::from_secs(45);

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    for &program in &bed.options.programs {
        for memory in SIZES {
            println!("state: {program}, {memory} MiB");
            let saved = Saved::make(bed, program, memory, report)
                .with_context(|| format!("cannot measure a snapshot of {memory} MiB under {program}"))?;
            for run in 0..bed.options.runs {
                let mut vm = saved.start(run)?;
                saved.answer(&mut vm, report)?;
            }
            if let (Program::Worker(_), COPIES_MIB) = (program, memory) {
                println!("state: {program}, {COPIES} copies");
                copies(&saved, report)?;
            }
        }
    }
    Ok(())
}

/// A guest that was saved while a shell waited for commands.
struct Saved {
    program: Program,
    guest: Guest,
    memory: u32,
    folder: PathBuf,
}

impl Saved {
    fn make(bed: &Bed<'_>, program: Program, memory: u32, report: &mut Report) -> Result<Self> {
        let folder = bed.scratch.join(format!("state-{program}-{memory}"));
        std::fs::create_dir_all(&folder)?;
        let guest = Guest::busybox(bed.artifacts).memory_mib(memory).network().after(After::Shell);
        let mut saved = Self { program, guest, memory, folder };
        let snapshots = saved.folder.clone();
        let guest = match program {
            Program::Worker(_) => saved.guest.clone().snapshots(&snapshots),
            Program::Qemu => saved.guest.clone(),
        };
        let mut vm = guest.start(&program, &saved.folder.join("first"))?;
        vm.console().expect("ARNIA-SHELL", Patience::Boot)?;
        Shell::take_over(vm.console())?;
        thread::sleep(SETTLE);
        let touched = process::guest_memory(vm.pid(), u64::from(memory) << 20)?;
        saved.add(report, "memory that the guest has touched", "MiB", touched as f64 / MIB);
        let begun = Instant::now();
        let (stopped, size) = match program {
            Program::Worker(_) => {
                let done = vm.control().snapshot("warm", None)?;
                (done.stopped_us as f64 / 1000.0, done.bytes)
            }
            Program::Qemu => {
                let stopped = vm.control().migrate_to_file(&saved.file())?;
                (stopped.as_secs_f64() * 1000.0, saved.file().metadata()?.len())
            }
        };
        saved.add(report, "making a snapshot", "s", begun.elapsed().as_secs_f64());
        saved.add(report, "guest stop for a snapshot", "ms", stopped);
        saved.add(report, "size of a snapshot", "MiB", size as f64 / MIB);
        saved.guest = guest;
        Ok(saved)
    }

    fn add(&self, report: &mut Report, measure: &str, unit: &'static str, figure: f64) {
        report.add(&format!("{measure}, {} MiB", self.memory), unit, &self.program.to_string(), figure);
    }

    /// QEMU's.
    fn file(&self) -> PathBuf {
        self.folder.join("migration")
    }

    /// Starts a copy.
    fn start(&self, number: u32) -> Result<Vm> {
        let folder: &Path = &self.folder.join(format!("copy{number}"));
        match self.program {
            Program::Worker(_) => Vm::restore(&self.program, &self.folder.join("warm"), &[], folder),
            Program::Qemu => Vm::incoming(&self.guest, &self.file(), folder),
        }
    }

    /// Has a copy run a command.
    fn answer(&self, vm: &mut Vm, report: &mut Report) -> Result<()> {
        // What is typed while QEMU still loads would be lost.
        while self.program == Program::Qemu && vm.control().state()? != RunState::Running {
            ensure!(vm.started().elapsed() < Patience::Boot.limit(), "QEMU does not run the copy");
            thread::sleep(Duration::from_millis(1));
        }
        let text = Shell::resumed(vm.console()).check("echo $((6 * 7))")?;
        let took = vm.started().elapsed().as_secs_f64() * 1000.0;
        ensure!(text == "42", "the copy computes {text:?}");
        self.add(report, "start from a snapshot until a command has run", "ms", took);
        if let Program::Worker(_) = self.program {
            let first = vm.control().counters()?.start_to_first_instruction_us;
            let first = first.context("the worker does not say when the guest's first instruction was")?;
            self.add(
                report,
                "start from a snapshot to the first guest instruction",
                "ms",
                first as f64 / 1000.0,
            );
        }
        Ok(())
    }
}

/// What one copy costs, and what ten do: the proportional share of all their memory.
fn copies(saved: &Saved, report: &mut Report) -> Result<()> {
    let mut vms: Vec<Vm> = Vec::new();
    let mut one = 0;
    for number in 0..COPIES {
        let mut vm = saved.start(number as u32)?;
        Shell::resumed(vm.console()).check("true")?;
        vms.push(vm);
        if number == 0 {
            thread::sleep(IDLE);
            one = process::memory(vms[0].pid())?;
        }
    }
    thread::sleep(IDLE);
    let all = vms.iter().map(|vm| process::memory(vm.pid())).sum::<Result<u64>>()?;
    saved.add(report, "host memory of one idle copy", "MiB", one as f64 / MIB);
    saved.add(report, "host memory of ten idle copies", "MiB", all as f64 / MIB);
    saved.add(report, "ten idle copies to one", "times", all as f64 / one as f64);
    Ok(())
}
