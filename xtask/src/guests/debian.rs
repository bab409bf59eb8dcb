//! A small Debian system on an ext4 disk, made without mounting anything.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::kernel::Kernel;
use super::packages::{DebianPackages, RELEASE};
use super::recipe::{Recipe, artifact_name};
use crate::host;

/// Size that the guest sees; the file on the host is sparse.
const DISK_SIZE: u64 = 2 << 30;

/// The Debian guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DebianDisk {
    /// Hash of the recipe it was made by.
    pub(crate) recipe: String,
    /// The kernel that its package manager installed.
    pub(crate) kernel: PathBuf,
    /// The initrd that its package manager made.
    pub(crate) initrd: PathBuf,
    /// The root file system. Boot a copy of it.
    pub(crate) disk: PathBuf,
    /// Who may log in.
    pub(crate) user: String,
    /// And how.
    pub(crate) password: String,
}

/// Builds the disk.
pub(crate) fn build(
    recipe: &Recipe,
    kernel: &Kernel,
    mirror: &DebianPackages,
    cache: &Path,
) -> Result<DebianDisk> {
    let name = artifact_name("debian", recipe, &[RELEASE, &kernel.version]);
    let folder = super::artifact(cache, &name, |folder| {
        println!("building the Debian {RELEASE} disk; this takes a minute or two");
        let archive = folder.join("root.tar");
        let hooks = Hooks {
            uploads: &[("login", "/tmp/login"), ("customize", "/tmp/customize")],
            commands: &[r#"chroot "$1" sh -eu /tmp/customize"#, r#"rm "$1/tmp/login" "$1/tmp/customize""#],
        };
        bootstrap(recipe, mirror, "minbase", &hooks, &archive)?;
        let root = folder.join("root");
        make_disk(&archive, DISK_SIZE, &root, &folder.join("disk.img"))?;
        take_kernel(&root, folder)?;
        fs::remove_dir_all(root)?;
        fs::remove_file(&archive)?;
        Ok(())
    })?;
    let mut login = recipe.list("login")?.into_iter();
    let (Some(user), Some(password)) = (login.next(), login.next()) else {
        bail!("the recipe's file `login` must hold a user and a password");
    };
    Ok(DebianDisk {
        recipe: recipe.hash().to_owned(),
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd.img"),
        disk: folder.join("disk.img"),
        user,
        password,
    })
}

/// What mmdebstrap does in the new system once its packages are installed.
pub(super) struct Hooks<'a> {
    /// Files of the recipe, and where they go.
    pub(super) uploads: &'a [(&'a str, &'a str)],
    /// Shell commands after that, with the system's folder as `$1`.
    pub(super) commands: &'a [&'a str],
}

/// Lets mmdebstrap make a system, as an archive that keeps owners and modes.
pub(super) fn bootstrap(
    recipe: &Recipe,
    mirror: &DebianPackages,
    variant: &str,
    hooks: &Hooks<'_>,
    archive: &Path,
) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.arg(format!("--variant={variant}")).arg("--format=tar");
    command.arg(format!("--include={}", recipe.list("packages")?.join(",")));
    // Files go in through mmdebstrap's own channel: without root, the program that runs the hooks
    // may not be allowed to read this user's folders.
    for (name, to) in hooks.uploads {
        let quoted = recipe.file(name).to_string_lossy().replace('\'', r"'\''");
        command.arg(format!("--customize-hook=upload '{quoted}' {to}"));
    }
    command.args(hooks.commands.iter().map(|hook| format!("--customize-hook={hook}")));
    command.arg(RELEASE).arg(archive).args(mirror.sources());
    host::run(command.env("LC_ALL", "C.UTF-8"))
}

/// Unpacks the archive into a folder, beside what is there already, and turns that into a disk of `size` bytes.
pub(super) fn make_disk(archive: &Path, size: u64, root: &Path, disk: &Path) -> Result<()> {
    println!("writing the disk");
    fs::create_dir_all(root)?;
    File::create(disk)?.set_len(size)?;
    // One shell for both steps, because without root it is fakeroot that remembers the owners
    // between them.
    let script = r#"PATH="$PATH:/usr/sbin:/sbin"
        tar --extract --file "$1" --directory "$2" --preserve-permissions --numeric-owner
        mke2fs -q -t ext4 -L arnia -E lazy_itable_init=0,lazy_journal_init=0 -d "$2" "$3""#;
    let fakeroot = if host::is_root() { None } else { Some("fakeroot") };
    let mut command = host::command(fakeroot.into_iter().chain(["sh", "-eu", "-c", script, "make-disk"]));
    host::run(command.args([archive, root, disk]))
}

/// Takes the kernel and initrd out of the system's files.
fn take_kernel(root: &Path, folder: &Path) -> Result<()> {
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let from = newest_file(&root.join("boot"), prefix)?;
        fs::copy(&from, folder.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

fn newest_file(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| name.to_string_lossy().starts_with(prefix));
    let newest = names.into_iter().max().with_context(|| format!("the guest has no /boot/{prefix}*"))?;
    Ok(folder.join(newest))
}
