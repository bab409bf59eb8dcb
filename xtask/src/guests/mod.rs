//! The guests that tests, benchmarks and the demo boot, built only from Debian packages.
//!
//! ```text
//! guests/ (recipes) ──┐
//!                     ├─> kernel ──> busybox initramfs ──┐
//! Debian mirror ──────┘          └─> Debian disk ────────┼─> .cache/guests/manifest.json
//!                                          ├─> bootable ──┤
//!                                          └─> software ──┘
//! ```
//!
//! Each artifact lies in a folder named by a hash of its recipe and of the package versions that it
//! was made from, so that a changed recipe is a different artifact and an unchanged one costs
//! nothing. What reads them (the crate `vm_test`) knows only the manifest.

pub(crate) mod agent;
mod bootable;
mod busybox;
pub(crate) mod cpio;
mod debian;
mod kernel;
pub(crate) mod kvm_rig;
mod packages;
mod recipe;
mod software;
pub(crate) mod static_program;
pub(crate) mod workloads;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::workspace::Workspace;
use crate::{apt, host};
use packages::DebianPackages;
use recipe::Recipe;

/// Whether to ask the mirror for newer packages when the artifacts are already there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// What was built from these recipes serves, whenever that was.
    Cached,
    /// Ask the mirror, and build again what has a newer version there.
    Newest,
}

/// What is in the cache, for whoever boots it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) kernel: kernel::Kernel,
    pub(crate) busybox: busybox::Busybox,
    pub(crate) debian: debian::DebianDisk,
    pub(crate) bootable: bootable::BootableDisk,
    pub(crate) software: software::Software,
}

/// The guests, and where the manifest lies that describes them.
pub(crate) struct Guests {
    pub(crate) manifest_path: PathBuf,
    pub(crate) manifest: Manifest,
}

/// Makes sure that all guests are there, installing the tools for it where they miss.
///
/// # Errors
/// If a tool or the mirror is missing, or a package does not contain what it should.
pub(crate) fn ensure(workspace: &Workspace, freshness: Freshness) -> Result<Guests> {
    let cache = workspace.cache().join("guests");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // Two tasks at once must not build the same thing into the same place.
    let lock = cache.join("lock");
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    lock.lock().context("cannot lock the cache of guests")?;

    let recipes = workspace.root().join("guests");
    let busybox_recipe = Recipe::read(&recipes.join("busybox"))?;
    let debian_recipe = Recipe::read(&recipes.join("debian"))?;
    let bootable_recipe = Recipe::read(&recipes.join("bootable"))?;
    let software_recipe = Recipe::read(&recipes.join("software"))?;
    let manifest_path = cache.join("manifest.json");
    if freshness == Freshness::Cached
        && let Some(manifest) = read_manifest(&manifest_path)
        && manifest.busybox.recipe == busybox_recipe.hash()
        && manifest.debian.recipe == debian_recipe.hash()
        && manifest.bootable.recipe == bootable_recipe.hash()
        && manifest.software.recipe == software_recipe.hash()
        && manifest.is_complete()
    {
        return Ok(Guests { manifest_path, manifest });
    }

    let rootless: &[apt::Need] = if host::is_root() { &[] } else { apt::GUESTS_ROOTLESS };
    apt::ensure(&[apt::GUESTS, rootless])?;
    let mirror = DebianPackages::update(&workspace.cache().join("apt"))?;
    let kernel = kernel::fetch(&mirror, &cache)?;
    let busybox = busybox::build(&busybox_recipe, &kernel, &mirror, &cache)?;
    let debian = debian::build(&debian_recipe, &kernel, &mirror, &cache)?;
    let bootable = bootable::build(&bootable_recipe, &debian, &cache)?;
    let software = software::build(&software_recipe, &kernel, &mirror, &cache)?;
    let manifest = Manifest { kernel, busybox, debian, bootable, software };
    let text = serde_json::to_string_pretty(&manifest)?;
    write_whole(&manifest_path, text.as_bytes())?;
    remove_others(&cache, |folder| manifest.files().iter().any(|file| file.starts_with(folder)));
    Ok(Guests { manifest_path, manifest })
}

impl Manifest {
    fn files(&self) -> [&Path; 8] {
        [
            &self.kernel.image,
            &self.busybox.program,
            &self.busybox.initramfs,
            &self.debian.kernel,
            &self.debian.initrd,
            &self.debian.disk,
            &self.bootable.disk,
            &self.software.disk,
        ]
    }

    fn is_complete(&self) -> bool {
        self.files().iter().all(|file| file.is_file())
    }
}

fn read_manifest(path: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes artifacts of older recipes and versions, all but those to keep. Failing to is no error: they are only in the way.
fn remove_others(cache: &Path, keep: impl Fn(&Path) -> bool) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for folder in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if !keep(&folder) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Fills a new folder by `work` and gives it its final name only when it is whole. A folder that is
/// there already is left as it is.
fn artifact(cache: &Path, name: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let finished = cache.join(name);
    if finished.is_dir() {
        return Ok(finished);
    }
    let unfinished = cache.join(format!("{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    work(&unfinished).with_context(|| format!("cannot make the guest artifact {name}"))?;
    fs::rename(&unfinished, &finished)?;
    Ok(finished)
}

pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, contents).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}
