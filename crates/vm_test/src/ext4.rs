//! File systems of guests, looked at by the host's own tools.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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

/// Writes files of the host to an ext4 file system that nobody has mounted: each from where, to where, with these permission
/// bits. Then makes symbolic links, each where and to what.
///
/// # Errors
/// If `debugfs` (package e2fsprogs) cannot do it.
pub fn install_files(disk: &Path, files: &[(&Path, &str, u32)], links: &[(&str, &str)]) -> Result<()> {
    let mut script = String::new();
    for (from, to, mode) in files {
        // The bits of an ordinary file before those of the permission.
        script += &format!("write {} {to}\nset_inode_field {to} mode 0100{mode:03o}\n", from.display());
    }
    for (at, to) in links {
        script += &format!("symlink {at} {to}\n");
    }
    let commands = disk.with_extension("debugfs");
    std::fs::write(&commands, script)?;
    let output =
        system_tool("debugfs").arg("-w").arg("-f").arg(&commands).arg(disk).output().context("debugfs")?;
    std::fs::remove_file(&commands)?;
    let said = String::from_utf8_lossy(&output.stderr);
    // It goes on after an error, and its status says nothing; its first line is its version.
    if !output.status.success() || said.lines().count() > 1 {
        bail!("debugfs did not write the files: {said}");
    }
    Ok(())
}
