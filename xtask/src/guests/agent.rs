//! The guest agent, and the busybox guest with it on board.

use std::fs;
use std::path::{Path, PathBuf};

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
    with_qemus_agent(workspace, guests, &folder.join("initramfs-qemu-agent.cpio"))?;
    Ok(folder)
}

/// Where Debian's package has QEMU's agent.
const QEMU_AGENT: &str = "/usr/sbin/qemu-ga";

/// The same guest with QEMU's agent instead of ours: the host's own program, with the libraries that it needs.
fn with_qemus_agent(workspace: &Workspace, guests: &Guests, to: &Path) -> Result<()> {
    let needed = host::output(&mut host::command(["ldd", QEMU_AGENT]))?;
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files = Vec::new();
    for path in [QEMU_AGENT].into_iter().chain(libraries) {
        let content = fs::read(path).with_context(|| format!("cannot read {path}"))?;
        files.push((path.trim_start_matches('/').to_owned(), content));
    }
    let test = workspace.root().join("guests/qemu_agent/test");
    let test = fs::read(&test).with_context(|| format!("cannot read {}", test.display()))?;
    files.push(("tests/qemu_agent".into(), test));
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
    guests.manifest.busybox.write_with(&files, to)
}
