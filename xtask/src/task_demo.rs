//! `cargo xtask demo`: a Debian guest with its console on this terminal.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::guests::{self, Freshness, Guests};
use crate::workspace::Workspace;
use crate::{apt, host, task_test};

/// Where the host listens for the guest's SSH server.
const SSH_PORT: u16 = 2222;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do by script what a user would: log in, run commands, download, shut down
    #[arg(long)]
    check: bool,
    /// Begin with a new disk instead of the one that the last demo left
    #[arg(long)]
    fresh: bool,
    /// Number of virtual CPUs
    #[arg(long, default_value_t = 2, value_name = "N")]
    cpus: u32,
    /// Guest memory
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    memory: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD])?;
    let workspace = Workspace::locate()?;
    let guests = guests::ensure(&workspace, Freshness::Cached)?;
    println!("building arnia-vmm");
    task_test::build_worker()?;
    if args.check { check(&workspace, &guests) } else { interactive(args, &workspace, &guests) }
}

/// Runs the script of the harness, which has the machinery for it.
fn check(workspace: &Workspace, guests: &Guests) -> Result<ExitCode> {
    let mut harness = host::cargo();
    harness.args(["run", "--quiet", "--package", "vm_test", "--", "demo-check"]);
    let status = task_test::with_harness_paths(&mut harness, workspace, guests).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn interactive(args: &Args, workspace: &Workspace, guests: &Guests) -> Result<ExitCode> {
    let debian = &guests.manifest.debian;
    let disk = demo_disk(args, workspace, &debian.disk)?;
    println!(
        "\nThe disk is {}.\n\
         To log in: user {}, password {} (or from another terminal: ssh -p {SSH_PORT} {}@127.0.0.1).\n\
         To leave: `poweroff` in the guest, or here Ctrl-] and then x.\n",
        disk.display(),
        debian.user,
        debian.password,
        debian.user,
    );
    let mut worker = Command::new(workspace.worker());
    worker.arg("--kernel").arg(&debian.kernel).arg("--initrd").arg(&debian.initrd);
    worker.args(["--append", "root=/dev/vda rw console=ttyS0"]);
    worker.arg("--disk").arg(format!("path={}", disk.display()));
    worker.arg("--net").arg(format!("user,forward={SSH_PORT}:22"));
    worker.args(["--cpus", &args.cpus.to_string(), "--memory", &args.memory, "--serial", "stdio"]);
    // The worker takes the terminal and this process's place; its exit status is the demo's.
    let error = worker.exec();
    Err(error).with_context(|| format!("cannot start {}", workspace.worker().display()))
}

/// The demo's own writable copy of the disk. It stays, like the disk of any machine.
fn demo_disk(args: &Args, workspace: &Workspace, original: &Path) -> Result<PathBuf> {
    let folder = workspace.cache().join("demo");
    fs::create_dir_all(&folder)?;
    // Named by its original, so that a new recipe gives a new disk.
    let key = original.parent().and_then(Path::file_name).unwrap_or_default();
    let disk = folder.join(key).with_extension("img");
    if args.fresh || !disk.exists() {
        let partial = disk.with_extension("partial");
        host::run(
            Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(original).arg(&partial),
        )?;
        fs::rename(&partial, &disk)?;
    }
    Ok(disk)
}
