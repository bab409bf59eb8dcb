//! Where things lie: the work tree, the build output and the cache of guest artifacts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand};

/// The program that runs inside guests.
pub(crate) const AGENT: &str = "arnia-agent";

/// The folders that the tasks work in.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo where this workspace and its build output are.
    pub(crate) fn locate() -> Result<Self> {
        let metadata = metadata()?;
        Ok(Self {
            root: metadata.workspace_root.into_std_path_buf(),
            target: metadata.target_directory.into_std_path_buf(),
        })
    }

    /// The top of the work tree.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's build output.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Where downloaded and built guest artifacts are kept; ignored by git and safe to delete.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join(".cache")
    }

    /// The worker: the one that `ARNIA_VMM` names, or else as `cargo build --release` leaves it.
    pub(crate) fn worker(&self) -> PathBuf {
        given_worker().unwrap_or_else(|| self.target.join("release/arnia-vmm"))
    }
}

/// A worker that is already built, if the environment names one (`ARNIA_VMM`).
pub(crate) fn given_worker() -> Option<PathBuf> {
    std::env::var_os("ARNIA_VMM").map(PathBuf::from)
}

/// The workspace's own packages, without what they depend on from outside.
pub(crate) fn metadata() -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot read the workspace with `cargo metadata`")
}
