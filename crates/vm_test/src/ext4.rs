//! File systems of guests, looked at by the host's own tools.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Whether an image of ext4 has no faults, and needs nothing that is not in it: its journal was written back.
///
/// # Errors
/// If it is otherwise, with what e2fsck says.
pub fn check_ext4(disk: &Path) -> Result<()> {
    let output = system_tool("e2fsck").arg("-fn").arg(disk).output().context("e2fsck")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "e2fsck finds faults: {said}");
    let header = system_tool("dumpe2fs").arg("-h").arg(disk).output().context("dumpe2fs")?.stdout;
    let header = String::from_utf8_lossy(&header);
    ensure!(!header.contains("needs_recovery"), "the journal was not written back");
    Ok(())
}

/// A program that lies where users without root do not look.
pub fn system_tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}
