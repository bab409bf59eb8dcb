//! The workload program, and the busybox guest with it on board.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Guests;
use crate::host;
use crate::workspace::Workspace;

/// Builds the program and packs it. Returns the folder that the harness is told of, with
/// `workloads` and `initramfs.cpio` in it.
///
/// # Errors
/// If it does not compile.
pub(crate) fn build(workspace: &Workspace, guests: &Guests) -> Result<PathBuf> {
    let built = super::static_program::build(workspace, "workloads", "workloads")?;
    let target = workspace.target().join("workloads");
    let folder = target.join("guest");
    fs::create_dir_all(&folder)?;
    let program = fs::read(built)?;
    super::write_whole(&folder.join("workloads"), &program)?;
    host::run(host::command(["chmod", "755"]).arg(folder.join("workloads")))?;

    let test = workspace.root().join("guests/workloads/test");
    let test = fs::read(&test).with_context(|| format!("cannot read {}", test.display()))?;
    let files: [(&str, &[u8]); 2] = [("bin/workloads", &program), ("tests/workloads", &test)];
    guests.manifest.busybox.write_with(&files, &folder.join("initramfs.cpio"))?;
    Ok(folder)
}
