//! Disks: throughput in a guest, on raw and qcow2, and conversion of images against QEMU's tool.
//!
//! In the guest a program copies past its page cache; time is taken outside, by its lines. On the host both
//! tools convert the same image, taking turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Bed;
use super::report::Report;
use crate::{After, Guest, Patience, Program};

/// Size of the disk in the guest, and how much of it is moved in one row.
const DISK_MIB: u64 = 512;
const MOVED_MIB: u64 = 256;
const SMALL_REQUESTS: u64 = 8192;
/// Size of the image that is converted; half of it is data.
const IMAGE_MIB: u64 = 1024;
const CLONES: u32 = 20;

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    fs::create_dir_all(bed.scratch)?;
    let arnia = arnia()?;
    for run in 0..bed.options.runs {
        println!("disk: images, run {} of {}", run + 1, bed.options.runs);
        images(&arnia, bed.scratch, report)?;
        for &program in &bed.options.programs {
            for format in ["raw", "qcow2"] {
                println!("disk: {program} on {format}, run {} of {}", run + 1, bed.options.runs);
                guest(bed, program, format, report)
                    .with_context(|| format!("cannot measure {format} under {program}"))?;
            }
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

fn guest(bed: &Bed<'_>, program: Program, format: &str, report: &mut Report) -> Result<()> {
    let disk = bed.scratch.join(format!("bench.{format}"));
    let _ = fs::remove_file(&disk);
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(&disk)
        .arg(format!("{DISK_MIB}M")))?;
    let guest = Guest::busybox(bed.artifacts).cpus(1).memory_mib(512).disk(&disk).after(After::Shell);
    let mut vm = guest.start(&program, bed.scratch)?;
    let console = vm.console();
    console.expect("ARNIA-SHELL", Patience::Boot)?;
    let mut shell = crate::Shell::take_over(console)?;
    let rows = [
        (
            "first write",
            format!("dd if=/dev/zero of=/dev/vda bs=1M count={MOVED_MIB} oflag=direct"),
            MOVED_MIB,
        ),
        (
            "write again",
            format!("dd if=/dev/zero of=/dev/vda bs=1M count={MOVED_MIB} oflag=direct"),
            MOVED_MIB,
        ),
        ("read", format!("dd if=/dev/vda of=/dev/null bs=1M count={MOVED_MIB} iflag=direct"), MOVED_MIB),
        (
            "read by 4 KiB",
            format!("dd if=/dev/vda of=/dev/null bs=4k count={SMALL_REQUESTS} iflag=direct"),
            SMALL_REQUESTS / 256,
        ),
        (
            "write by 4 KiB",
            format!("dd if=/dev/zero of=/dev/vda bs=4k count={SMALL_REQUESTS} oflag=direct"),
            SMALL_REQUESTS / 256,
        ),
    ];
    for (name, command, mib) in rows {
        let started = Instant::now();
        shell.check(&format!("{command} 2>/dev/null"))?;
        report.add(
            &format!("{format}: {name}"),
            "s per GiB",
            &program.to_string(),
            started.elapsed().as_secs_f64() * 1024.0 / mib as f64,
        );
    }
    drop(vm);
    fs::remove_file(&disk)?;
    Ok(())
}

fn images(arnia: &Path, folder: &Path, report: &mut Report) -> Result<()> {
    let (raw, qcow2, out) = (folder.join("image.raw"), folder.join("image.qcow2"), folder.join("out"));
    if !raw.exists() {
        let mut bytes = vec![0u8; 1 << 20];
        let file = fs::File::create(&raw)?;
        file.set_len(IMAGE_MIB << 20)?;
        let mut state = 1u64;
        for mib in (0..IMAGE_MIB).step_by(2) {
            for word in bytes.chunks_exact_mut(8) {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                word.copy_from_slice(&(state >> 8).to_le_bytes());
            }
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, mib << 20)?;
        }
        run(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&qcow2))?;
    }
    for (name, from, format) in [
        ("convert raw to qcow2", &raw, "qcow2"),
        ("convert qcow2 to raw", &qcow2, "raw"),
        ("convert qcow2 to qcow2", &qcow2, "qcow2"),
    ] {
        for subject in ["arnia", "qemu-img"] {
            let _ = fs::remove_file(&out);
            let mut command = match subject {
                "arnia" => Command::new(arnia),
                _ => Command::new("qemu-img"),
            };
            match subject {
                "arnia" => command.args(["disk", "convert", "--to", format]),
                _ => command.args(["convert", "-O", format]),
            };
            let started = Instant::now();
            run(command.arg(from).arg(&out))?;
            report.add(name, "s", subject, started.elapsed().as_secs_f64());
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

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
