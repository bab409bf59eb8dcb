//! The guest agent, and the busybox guest with it on board.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::Guests;
use crate::workspace::Workspace;
use crate::{host, workspace};

/// Builds the program and packs it. Returns the folder that the harness is told of, with `arnia-agent`,
/// its units and `initramfs.cpio` in it.
///
/// # Errors
/// If it does not compile.
pub(crate) fn build(workspace: &Workspace, guests: &Guests) -> Result<PathBuf> {
    let built = super::static_program::build(workspace, "agent", workspace::AGENT)?;
    let folder = workspace.target().join("agent-guest");
    fs::create_dir_all(&folder)?;
    let program = fs::read(built)?;
    super::write_whole(&folder.join(workspace::AGENT), &program)?;
    host::run(host::command(["chmod", "755"]).arg(folder.join(workspace::AGENT)))?;
    for unit in ["arnia-agent.service", "arnia-firstboot.service"] {
        let from = workspace.root().join("crates/agent/init").join(unit);
        fs::copy(&from, folder.join(unit)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let test = workspace.root().join("guests/agent/test");
    let test = fs::read(&test).with_context(|| format!("cannot read {}", test.display()))?;
    let files: [(&str, &[u8]); 2] = [("bin/arnia-agent", &program), ("tests/agent", &test)];
    guests.manifest.busybox.write_with(&files, &folder.join("initramfs.cpio"))?;
    Ok(folder)
}
