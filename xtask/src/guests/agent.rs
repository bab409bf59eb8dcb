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
    let mut files = vec![(QEMU_AGENT.trim_start_matches('/').to_owned(), read(Path::new(QEMU_AGENT))?)];
    files.extend(libraries(Path::new(QEMU_AGENT))?);
    files.push(("tests/qemu_agent".into(), read(&workspace.root().join("guests/qemu_agent/test"))?));
    write(guests, &files, to)
}

/// The same guest with the daemon and the worker on board, and a kernel for machines in the machine: for what only a kernel with
/// control groups of version 2 can show.
pub(crate) fn with_daemon(workspace: &Workspace, guests: &Guests) -> Result<PathBuf> {
    let folder = workspace.target().join("daemon-guest");
    fs::create_dir_all(&folder)?;
    let programs =
        [("bin/arnia", workspace.target().join("debug/arnia")), ("bin/arnia-vmm", workspace.worker())];
    let mut files = Vec::new();
    for (name, program) in programs {
        // What is for debuggers is most of it.
        let stripped = folder.join(name.replace('/', "-"));
        host::run(host::command(["strip", "-o"]).arg(&stripped).arg(&program))?;
        files.push((name.to_owned(), read(&stripped)?));
        files.extend(libraries(&program)?);
    }
    files.sort();
    files.dedup();
    files.push(("vmlinuz".into(), read(&guests.manifest.kernel.image)?));
    files.push(("tests/cgroups".into(), read(&workspace.root().join("guests/cgroups/test"))?));
    let initramfs = folder.join("initramfs.cpio");
    write(guests, &files, &initramfs)?;
    Ok(initramfs)
}

/// The shared libraries that a program of the host needs, with their paths in a guest.
fn libraries(program: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let needed = host::output(host::command(["ldd"]).arg(program))?;
    let paths = needed.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(|path| Ok((path.trim_start_matches('/').to_owned(), read(Path::new(path))?))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(guests: &Guests, files: &[(String, Vec<u8>)], to: &Path) -> Result<()> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
    guests.manifest.busybox.write_with(&files, to)
}
