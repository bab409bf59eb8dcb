//! The workload program, and the busybox guest with it on board.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Guests;
use super::cpio::Archive;
use crate::host;
use crate::workspace::Workspace;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Static, because the initramfs has no libraries; for the CPUs that Linux distributions build for,
/// because guests on any host must run it.
const RUSTFLAGS: &str = "-C target-cpu=x86-64-v2 -C target-feature=+crt-static -C strip=symbols";

/// Builds the program and packs it. Returns the folder that the harness is told of, with
/// `workloads` and `initramfs.cpio` in it.
///
/// # Errors
/// If it does not compile.
pub(crate) fn build(workspace: &Workspace, guests: &Guests) -> Result<PathBuf> {
    // A folder of its own, so that the other flags do not make cargo build everything else again.
    let target = workspace.target().join("workloads");
    let mut cargo = host::cargo();
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "workloads",
        "--target",
        TARGET,
        "--target-dir",
    ]);
    host::run(cargo.arg(&target).env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;

    let folder = target.join("guest");
    fs::create_dir_all(&folder)?;
    let program = fs::read(target.join(TARGET).join("release/workloads"))?;
    super::write_whole(&folder.join("workloads"), &program)?;
    host::run(host::command(["chmod", "755"]).arg(folder.join("workloads")))?;

    // The kernel unpacks archives that stand one behind the other, each over what is there already.
    let busybox = &guests.manifest.busybox.initramfs;
    let mut initramfs = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    archive.file("bin/workloads", 0o755, &program);
    let test = workspace.root().join("guests/workloads/test");
    let test = fs::read(&test).with_context(|| format!("cannot read {}", test.display()))?;
    archive.file("tests/workloads", 0o755, &test);
    initramfs.extend(archive.finish());
    super::write_whole(&folder.join("initramfs.cpio"), &initramfs)?;
    Ok(folder)
}
