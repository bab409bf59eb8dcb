//! The guests that `cargo xtask guests` built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Kernels, initramfs and disks. All of them are shared and must not be written.
#[derive(Debug, Deserialize)]
pub struct Artifacts {
    /// The stock cloud kernel.
    pub kernel: Kernel,
    /// The initramfs with busybox.
    pub busybox: Busybox,
    /// The small Debian system.
    pub debian: DebianDisk,
    /// The same with boot loaders.
    pub bootable: BootableDisk,
    /// Real programs as tests.
    pub software: SoftwareDisk,
    #[serde(skip)]
    folder: PathBuf,
}

/// A kernel.
#[derive(Debug, Deserialize)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Package version.
    pub version: String,
}

/// The busybox guest.
#[derive(Debug, Deserialize)]
pub struct Busybox {
    /// The static program that the guest runs, for running the same on the host.
    pub program: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
}

/// The Debian guest.
#[derive(Debug, Deserialize)]
pub struct DebianDisk {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initrd.
    pub initrd: PathBuf,
    /// Its root disk, to be copied.
    pub disk: PathBuf,
    /// Who may log in.
    pub user: String,
    /// And how.
    pub password: String,
}

/// The Debian guest on a disk that firmware boots.
#[derive(Debug, Deserialize)]
pub struct BootableDisk {
    /// The disk, to be copied.
    pub disk: PathBuf,
}

/// The disk with software for tests. The Debian guest's kernel and initrd boot it.
#[derive(Debug, Deserialize)]
pub struct SoftwareDisk {
    /// The root file system, to be read only.
    pub disk: PathBuf,
    /// The same as a folder.
    pub root: PathBuf,
}

impl Artifacts {
    /// Reads the manifest that `ARNIA_GUESTS` names.
    ///
    /// # Errors
    /// If the variable is not set or what it names is not there.
    pub fn from_env() -> Result<Self> {
        let Some(path) = std::env::var_os("ARNIA_GUESTS") else {
            bail!("no guests to boot: run it by `cargo xtask test`, which builds them");
        };
        Self::read(Path::new(&path))
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut artifacts: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is no manifest", path.display()))?;
        artifacts.folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(artifacts)
    }

    /// A folder beside the guests for results that stay true as long as the guests do.
    pub(crate) fn cache(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.with_file_name(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }
}

/// Copies a disk without filling its holes, sharing blocks where the host's file system can.
///
/// # Errors
/// If the copy fails, for example because the host's disk is full.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).status()?;
    if !copied.success() {
        bail!("cannot copy {} to {}", from.display(), to.display());
    }
    Ok(())
}
