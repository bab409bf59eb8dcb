//! Programs of this workspace that run inside guests.

use std::path::PathBuf;

use anyhow::Result;

use crate::host;
use crate::workspace::Workspace;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Static, because an initramfs has no libraries and a guest may have older ones; for the CPUs that
/// Linux distributions build for, because guests on any host must run it.
const RUSTFLAGS: &str = "-C target-cpu=x86-64-v2 -C target-feature=+crt-static -C strip=symbols";

/// Builds one and says where it lies.
///
/// # Errors
/// If it does not compile.
pub(crate) fn build(workspace: &Workspace, package: &str, program: &str) -> Result<PathBuf> {
    // A folder of its own, so that the other flags do not make cargo build everything else again.
    let target = workspace.target().join("static");
    let mut cargo = host::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", package, "--bin", program]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&target);
    host::run(cargo.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    Ok(target.join(TARGET).join("release").join(program))
}
