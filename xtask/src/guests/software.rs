//! The software guest: real programs, in a system that boots in seconds because nothing else starts with it.
//! Its files are kept beside the disk, for the host to run the same programs on the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::debian::{self, Hooks};
use super::kernel::Kernel;
use super::packages::{DebianPackages, RELEASE};
use super::recipe::{Recipe, artifact_name};

/// Size that the guest sees; the file on the host is sparse.
const DISK_SIZE: u64 = 3 << 30;

/// The software guest. It boots with the kernel and initrd of the Debian guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Software {
    /// Hash of the recipe it was made by.
    pub(crate) recipe: String,
    /// The root file system. Boot a copy of it.
    pub(crate) disk: PathBuf,
    /// The same as a folder.
    pub(crate) root: PathBuf,
}

/// Builds disk and folder.
pub(crate) fn build(
    recipe: &Recipe,
    kernel: &Kernel,
    mirror: &DebianPackages,
    cache: &Path,
) -> Result<Software> {
    let name = artifact_name("software", recipe, &[RELEASE, &kernel.version]);
    let folder = super::artifact(cache, &name, |folder| {
        println!("building the disk with software for tests; this takes a few minutes");
        let archive = folder.join("root.tar");
        let hooks = Hooks {
            uploads: &[("init", "/sbin/arnia-init"), ("customize", "/tmp/customize")],
            commands: &[
                r#"chmod 755 "$1/sbin/arnia-init""#,
                r#"chroot "$1" sh -eu /tmp/customize"#,
                r#"rm "$1/tmp/customize""#,
            ],
        };
        debian::bootstrap(recipe, mirror, "essential", &hooks, &archive)?;
        debian::make_disk(&archive, DISK_SIZE, &folder.join("root"), &folder.join("disk.img"))?;
        fs::remove_file(&archive)?;
        Ok(())
    })?;
    Ok(Software {
        recipe: recipe.hash().to_owned(),
        disk: folder.join("disk.img"),
        root: folder.join("root"),
    })
}
