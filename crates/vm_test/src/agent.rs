//! The guest agent in the guests of this harness.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use agent_client::Agent;
use anyhow::{Context, Result};

use crate::{Patience, install_files};

/// The agent's program and units, and an initramfs that has it besides busybox.
#[derive(Clone, Debug)]
pub struct AgentFiles {
    folder: PathBuf,
}

impl AgentFiles {
    /// Finds them in the folder that `ARNIA_AGENT` names.
    ///
    /// # Errors
    /// If the variable is not set.
    pub fn from_env() -> Result<Self> {
        let folder = std::env::var_os("ARNIA_AGENT");
        let folder = folder.context("ARNIA_AGENT is not set; run it by `cargo xtask test`")?;
        Ok(Self { folder: folder.into() })
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.folder.join("arnia-agent")
    }

    /// The busybox guest's initramfs, whose test `agent` starts the agent.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// The same guest with QEMU's agent instead of ours, which the test `qemu_agent` starts.
    pub fn initramfs_with_qemus(&self) -> PathBuf {
        self.folder.join("initramfs-qemu-agent.cpio")
    }

    /// Installs the agent on an unmounted ext4 file system, as our images have it.
    ///
    /// # Errors
    /// If `debugfs` (package e2fsprogs) cannot do it.
    pub fn install(&self, disk: &Path) -> Result<()> {
        const UNITS: [&str; 2] = ["arnia-agent.service", "arnia-firstboot.service"];
        let folder = "/etc/systemd/system";
        let units = UNITS.map(|unit| (self.folder.join(unit), format!("{folder}/{unit}")));
        let links = UNITS.map(|unit| format!("{folder}/multi-user.target.wants/{unit}"));
        let program = self.program();
        let mut files = vec![(program.as_path(), "/usr/sbin/arnia-agent", 0o755)];
        files.extend(units.iter().map(|(from, to)| (from.as_path(), to.as_str(), 0o644)));
        let links: Vec<_> =
            links.iter().zip(&units).map(|(at, (_, to))| (at.as_str(), to.as_str())).collect();
        install_files(disk, &files, &links)
    }
}

/// A path for a guest's virtio socket: short, as sockets need it, and gone afterwards.
#[derive(Debug)]
pub struct VsockPath(PathBuf);

impl VsockPath {
    /// A path that nobody else uses.
    pub fn unique() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("arnia-vsock-{}-{number}", std::process::id())))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The agent of the guest, when it answers.
    ///
    /// # Errors
    /// If it does not within the time that a boot may take.
    pub fn agent(&self) -> Result<Agent> {
        let agent = Agent::of_worker(&self.0);
        agent.wait_until_ready(Patience::Login.limit()).context("the guest's agent")?;
        Ok(agent)
    }
}

impl Drop for VsockPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
