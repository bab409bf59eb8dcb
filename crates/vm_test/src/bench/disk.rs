//! Disks: throughput in a guest on raw and qcow2, conversion of images against QEMU's tool, linked clones, and
//! what firmware adds to a boot.
//!
//! In the guest the workload program moves data past the page cache and tells how long it took, by the guest's
//! clock; `bench cpu` watches that such clocks are right. On the host both tools convert the same image, taking
//! turns.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Bed;
use super::report::Report;
use crate::workloads::Workloads;
use crate::{After, Firmware, Guest, Patience, Program, Shell, copy_sparse};

/// Size of the disk in the guest, and how much of it is used.
const DISK_MIB: u64 = 512;
const SPAN: u64 = 256 << 20;
/// Size of the image that is converted; half of it is data.
const IMAGE_MIB: u64 = 1024;
const CLONES: u32 = 20;
/// The first words of every kernel.
const KERNEL: &str = "Linux version";

/// A row: its name, whether it is told by the request, and the job.
const ROWS: [(&str, bool, &str); 8] = [
    ("first write, 1 MiB each", false, "write block=1048576 requests=256"),
    // Several times, so that it is the throughput that counts and not the first time that the guest does it.
    ("write, 1 MiB each", false, "write block=1048576 requests=2048"),
    ("read, 1 MiB each", false, "block=1048576 requests=2048"),
    ("random read, 4 KiB, one at a time", true, "random requests=8192"),
    ("random read, 4 KiB, 16 in flight", true, "random requests=16384 threads=16"),
    ("random write, 4 KiB, one at a time", true, "write random requests=8192"),
    ("random write, 4 KiB, 16 in flight", true, "write random requests=16384 threads=16"),
    ("random write, 4 KiB, each flushed", true, "write random flush requests=2048"),
];

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    fs::create_dir_all(bed.scratch)?;
    let (arnia, workloads) = (arnia()?, Workloads::from_env()?);
    for run in 0..bed.options.runs {
        println!("disk: images, run {} of {}", run + 1, bed.options.runs);
        images(&arnia, bed.scratch, report)?;
        for format in ["raw", "qcow2"] {
            for &program in &bed.options.programs {
                println!("disk: {program} on {format}, run {} of {}", run + 1, bed.options.runs);
                guest(bed, &workloads, program, format, report)
                    .with_context(|| format!("cannot measure {format} under {program}"))?;
            }
        }
        for &program in &bed.options.programs {
            println!("disk: boot by firmware under {program}, run {} of {}", run + 1, bed.options.runs);
            boots(bed, program, report).with_context(|| format!("cannot measure boots under {program}"))?;
        }
    }
    Ok(())
}

/// The command line program, which is built beside the worker.
fn arnia() -> Result<PathBuf> {
    let path = crate::program::worker_path()?.with_file_name("arnia");
    ensure!(path.exists(), "{} is missing; build it: cargo build --release --package cli", path.display());
    Ok(path)
}

fn guest(
    bed: &Bed<'_>,
    workloads: &Workloads,
    program: Program,
    format: &str,
    report: &mut Report,
) -> Result<()> {
    let disk = bed.scratch.join(format!("bench.{format}"));
    let _ = fs::remove_file(&disk);
    let size = format!("{DISK_MIB}M");
    run(Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&disk).arg(size))?;
    let guest = Guest::busybox(bed.artifacts).initrd(workloads.initramfs()).cpus(1).memory_mib(512);
    let mut vm = guest.disk(&disk).after(After::Shell).start(&program, bed.scratch)?;
    let console = vm.console();
    console.expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = Shell::take_over(console)?;
    for (name, by_request, job) in ROWS {
        let text = shell.check(&format!("workloads --disk /dev/vda span={SPAN} {job}"))?;
        let figures: Vec<f64> =
            text.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let [requests, bytes, ns] = figures[..] else { anyhow::bail!("no figures in {text:?}") };
        let (unit, figure) = match by_request {
            true => ("µs per request", ns / requests / 1e3),
            false => ("s per GiB", ns / bytes * (1 << 30) as f64 / 1e9),
        };
        report.add(&format!("{format}: {name}"), unit, &program.to_string(), figure);
    }
    drop(vm);
    fs::remove_file(&disk)?;
    Ok(())
}

/// From the start of the program to the kernel's first words: directly and by firmware. What firmware adds
/// has GRUB in it, which waits for a second.
fn boots(bed: &Bed<'_>, program: Program, report: &mut Report) -> Result<()> {
    let disk = bed.scratch.join("bootable.raw");
    if !disk.exists() {
        copy_sparse(&bed.artifacts.bootable.disk, &disk)?;
    }
    let ways = [
        ("directly", Guest::busybox(bed.artifacts).memory_mib(1024)),
        ("by SeaBIOS and GRUB", Guest::firmware(Firmware::Bios, &disk)),
        ("by OVMF and GRUB", Guest::firmware(Firmware::Uefi, &disk)),
    ];
    for (way, guest) in ways {
        let mut vm = guest.start(&program, bed.scratch)?;
        vm.console().expect(KERNEL, Patience::Boot)?;
        let name = format!("to the kernel's first words, {way}");
        report.add(&name, "s", &program.to_string(), vm.started().elapsed().as_secs_f64());
    }
    Ok(())
}

/// Who converts an image, and whether that counts. Memory that nobody has used for a while is slow at first where the host is itself a
/// virtual machine, and whoever comes first pays for the page cache that the others use after it.
const TURNS: [(&str, bool); 3] = [("qemu-img", false), ("arnia", true), ("qemu-img", true)];

fn images(arnia: &Path, folder: &Path, report: &mut Report) -> Result<()> {
    let (raw, qcow2, out) = (folder.join("image.raw"), folder.join("image.qcow2"), folder.join("out"));
    if !raw.exists() {
        write_image(&raw)?;
        run(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&qcow2))?;
    }
    let theirs = |format: &str| if format == "vhd" { "vpc" } else { format }.to_owned();
    for (from_format, from) in [("raw", &raw), ("qcow2", &qcow2)] {
        for format in ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx"] {
            for (subject, counts) in TURNS {
                let _ = fs::remove_file(&out);
                let mut command =
                    Command::new(if subject == "arnia" { arnia } else { Path::new("qemu-img") });
                match subject {
                    "arnia" => command.args(["disk", "convert", "--to", format]),
                    _ => command.args(["convert", "-f", from_format, "-O", &theirs(format)]),
                };
                let name = format!("convert {from_format} to {format}");
                let seconds = seconds_of(command.arg(from).arg(&out))?;
                if counts {
                    report.add(&name, "s", subject, seconds);
                }
            }
            // Back again, from what was made last.
            if from_format == "raw" && format != "raw" && format != "qcow2" {
                back(arnia, &out, &folder.join("back"), format, &theirs(format), report)?;
            }
        }
    }
    for (name, size) in [("linked clone of 1 GiB", None), ("linked clone of 8 TiB", Some("8T"))] {
        let base = match size {
            None => qcow2.clone(),
            Some(size) => {
                let base = folder.join("large.qcow2");
                let _ = fs::remove_file(&base);
                run(Command::new(arnia).args(["disk", "create"]).arg(&base).arg(size))?;
                base
            }
        };
        for _ in 0..CLONES {
            let _ = fs::remove_file(&out);
            let started = Instant::now();
            run(Command::new(arnia).args(["disk", "overlay"]).arg(&base).arg(&out))?;
            report.add(name, "ms", "arnia", started.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let _ = fs::remove_file(&out);
    Ok(())
}

fn back(
    arnia: &Path,
    from: &Path,
    out: &Path,
    format: &str,
    theirs: &str,
    report: &mut Report,
) -> Result<()> {
    for (subject, counts) in TURNS {
        let _ = fs::remove_file(out);
        let mut command = Command::new(if subject == "arnia" { arnia } else { Path::new("qemu-img") });
        match subject {
            "arnia" => command.args(["disk", "convert", "--to", "raw"]),
            _ => command.args(["convert", "-f", theirs, "-O", "raw"]),
        };
        let name = format!("convert {format} to raw");
        let seconds = seconds_of(command.arg(from).arg(out))?;
        if counts {
            report.add(&name, "s", subject, seconds);
        }
    }
    let _ = fs::remove_file(out);
    Ok(())
}

/// How long a conversion takes. What the host still has to write back of others would be counted to it, and most to who comes first.
fn seconds_of(command: &mut Command) -> Result<f64> {
    run(&mut Command::new("sync"))?;
    let started = Instant::now();
    run(command)?;
    Ok(started.elapsed().as_secs_f64())
}

/// An image of which every second mebibyte is data.
fn write_image(path: &Path) -> Result<()> {
    let mut bytes = vec![0u8; 1 << 20];
    let file = fs::File::create(path)?;
    file.set_len(IMAGE_MIB << 20)?;
    let mut state = 1u64;
    for mib in (0..IMAGE_MIB).step_by(2) {
        for word in bytes.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state >> 8).to_le_bytes());
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, mib << 20)?;
    }
    Ok(())
}

/// What the project wants of its disks, and whether it is so, in Markdown; nothing if it was not measured.
pub(super) fn goals(report: &Report) -> String {
    let worst = |prefix: &str, theirs: &str, ours: &str| {
        let rows = report.names().filter(|name| name.starts_with(prefix));
        let ratio =
            |name: &str| Some((report.median(name, theirs)? / report.median(name, ours)?, name.to_owned()));
        rows.filter_map(ratio).min_by(|a, b| a.0.total_cmp(&b.0))
    };
    let clone = report.median("linked clone of 8 TiB", "arnia");
    let goals = [
        ("raw in a guest: at least 2 × as fast as QEMU (the worst row)", 2.0, worst("raw: ", "qemu", "bt")),
        (
            "qcow2 in a guest: at least 2 × as fast as QEMU (the worst row)",
            2.0,
            worst("qcow2: ", "qemu", "bt"),
        ),
        ("conversion: at least as fast as qemu-img (the worst)", 1.0, worst("convert ", "qemu-img", "arnia")),
        (
            "linked clone: under 10 ms (times faster than that)",
            1.0,
            clone.map(|ms| (10.0 / ms, "8 TiB".into())),
        ),
    ];
    let mut text = String::new();
    for (goal, bound, measured) in goals {
        let Some((ratio, row)) = measured else { continue };
        if text.is_empty() {
            text += "\n| goal | measured | row | |\n|---|---:|---|---|\n";
        }
        let verdict = if ratio >= bound { "reached" } else { "missed" };
        let _ = writeln!(text, "| {goal} | {ratio:.2} | {row} | {verdict} |");
    }
    text
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}):\n{told}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_row_decides() {
        let mut report = Report::default();
        assert_eq!(goals(&report), "");
        for (name, qemu) in [("raw: read", 9.0), ("raw: write", 3.0)] {
            report.add(name, "s", "bt", 2.0);
            report.add(name, "s", "qemu", qemu);
        }
        let text = goals(&report);
        assert!(text.contains("| 1.50 | raw: write | missed |"), "{text}");
        assert!(!text.contains("qcow2"), "{text}");
    }
}
