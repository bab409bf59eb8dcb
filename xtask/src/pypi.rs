//! Programs of PyPI, each in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{apt, host};

/// Installs `package` (name and version, `name==1.2`) in `folder`, unless it is there; returns its program `name`.
///
/// # Errors
/// If Python is missing and cannot be installed, or the package cannot be had.
pub(crate) fn install(folder: &Path, package: &str, name: &str) -> Result<PathBuf> {
    apt::ensure(&[apt::VENV])?;
    let program = folder.join("bin").join(name);
    let marker = folder.join("installed");
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == package) {
        return Ok(program);
    }
    host::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    host::run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", package]))?;
    fs::write(&marker, package)?;
    Ok(program)
}
