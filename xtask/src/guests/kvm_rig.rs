//! The disk that the KVM rig works on: a Debian system with what the boot tests call, and the guests that they boot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian::{self, Hooks};
use super::packages::{DebianPackages, RELEASE};
use super::recipe::{Recipe, artifact_name};
use super::{Guests, Manifest};
use crate::workspace::Workspace;
use crate::{apt, host};

/// Where the guests lie in it.
pub(crate) const CACHE: &str = "cache";
/// Size that the machine sees, with room for what tests write; the file on the host is sparse.
const DISK_SIZE: u64 = 16 << 30;

/// Builds the disk, and returns its path. Whoever boots it must not write it.
///
/// # Errors
/// If a tool or the mirror is missing.
pub(crate) fn build(workspace: &Workspace, guests: &Guests) -> Result<PathBuf> {
    let cache = workspace.cache().join("kvm-rig");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let recipe = Recipe::read(&workspace.root().join("guests/kvm-rig/disk"))?;
    let artifacts = artifacts(&guests.manifest)?;
    let names: Vec<_> = artifacts.iter().map(|folder| name(folder)).collect();
    let versions: Vec<_> = [RELEASE].into_iter().chain(names.iter().map(String::as_str)).collect();
    let artifact = artifact_name("disk", &recipe, &versions);
    let folder = super::artifact(&cache, &artifact, |folder| {
        println!("building the disk for the machine with KVM; this takes a few minutes");
        let rootless: &[apt::Need] = if host::is_root() { &[] } else { apt::GUESTS_ROOTLESS };
        apt::ensure(&[apt::GUESTS, rootless])?;
        let mirror = DebianPackages::update(&workspace.cache().join("apt"))?;
        let archive = folder.join("root.tar");
        debian::bootstrap(&recipe, &mirror, "minbase", &Hooks { uploads: &[], commands: &[] }, &archive)?;
        let root = folder.join("root");
        for artifact in &artifacts {
            link_all(artifact, &root.join(CACHE).join("guests").join(name(artifact)))?;
        }
        debian::make_disk(&archive, DISK_SIZE, &root, &folder.join("disk.img"))?;
        fs::remove_dir_all(root)?;
        fs::remove_file(&archive)?;
        Ok(())
    })?;
    super::remove_others(&cache, |other| other == folder);
    Ok(folder.join("disk.img"))
}

/// The folders of what the machine boots. The disk with software is not among them: its tests are of the other engine, and
/// would take hours.
fn artifacts(manifest: &Manifest) -> Result<Vec<&Path>> {
    let files =
        [&manifest.kernel.tree, &manifest.busybox.initramfs, &manifest.debian.disk, &manifest.bootable.disk];
    files.into_iter().map(|file| file.parent().context("an artifact lies in a folder")).collect()
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Gives all files of a folder second names in another one.
fn link_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    host::run(host::command(["cp", "--archive", "--link", "--no-target-directory"]).args([from, to]))
}
