//! The smallest useful guest: busybox on an initramfs, with the modules for our devices and tests
//! that the kernel command line asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::packages::DebianPackages;
use super::recipe::{Recipe, artifact_name};
use crate::host;

const PACKAGE: &str = "busybox-static";

/// The busybox guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Busybox {
    /// Hash of the recipe it was made by.
    pub(crate) recipe: String,
    /// The program itself, which also runs on the host: benchmarks compare the two.
    pub(crate) program: PathBuf,
    /// The initramfs, not compressed: unpacking it would only cost guest instructions.
    pub(crate) initramfs: PathBuf,
}

impl Busybox {
    /// Writes an initramfs with more executable files in it.
    ///
    /// # Errors
    /// If the one that is there cannot be read, or the other not be written.
    pub(crate) fn write_with(&self, files: &[(&str, &[u8])], to: &Path) -> Result<()> {
        // The kernel unpacks archives that stand one behind the other, each over what is there already.
        let mut initramfs =
            fs::read(&self.initramfs).with_context(|| format!("cannot read {}", self.initramfs.display()))?;
        let mut archive = Archive::default();
        // A file whose folder is missing would be left out without a word.
        let folders = files.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1));
        let folders: BTreeSet<_> = folders.filter_map(Path::to_str).filter(|path| !path.is_empty()).collect();
        for folder in folders {
            archive.directory(folder);
        }
        for (path, contents) in files {
            archive.file(path, 0o755, contents);
        }
        initramfs.extend(archive.finish());
        super::write_whole(to, &initramfs)
    }
}

/// Builds the initramfs.
pub(crate) fn build(
    recipe: &Recipe,
    kernel: &Kernel,
    mirror: &DebianPackages,
    cache: &Path,
) -> Result<Busybox> {
    let version = mirror.field(PACKAGE, "Version")?;
    let name = artifact_name("busybox", recipe, &[&version, &kernel.version]);
    let folder = super::artifact(cache, &name, |folder| {
        println!("building the busybox initramfs");
        let tree = folder.join("tree");
        mirror.unpack(PACKAGE, &tree)?;
        let program = folder.join("busybox");
        fs::rename(tree.join("bin/busybox"), &program).context("the package has no bin/busybox")?;
        fs::remove_dir_all(&tree)?;
        fs::write(folder.join("initramfs.cpio"), initramfs(recipe, kernel, &program)?)?;
        Ok(())
    })?;
    Ok(Busybox {
        recipe: recipe.hash().to_owned(),
        program: folder.join("busybox"),
        initramfs: folder.join("initramfs.cpio"),
    })
}

fn initramfs(recipe: &Recipe, kernel: &Kernel, busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in [
        "bin",
        "dev",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "lib",
        "mnt",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tests",
        "tmp",
    ] {
        archive.directory(folder);
    }
    // The kernel opens the console before /init can mount anything.
    archive.character_device("dev/console", 5, 1);

    archive.file("bin/busybox", 0o755, &fs::read(busybox)?);
    for applet in host::output(Command::new(busybox).arg("--list"))?.lines().filter(|name| *name != "busybox")
    {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.file("init", 0o755, &fs::read(recipe.file("init"))?);
    archive.file("etc/udhcpc.script", 0o755, &fs::read(recipe.file("udhcpc.script"))?);
    archive.file("etc/acpi/PWRF/00000080", 0o755, &fs::read(recipe.file("power"))?);
    let mut tests: Vec<_> = fs::read_dir(recipe.file("tests"))?.flatten().map(|entry| entry.path()).collect();
    tests.sort();
    for test in tests {
        let name = test.file_name().context("a test has a name")?.to_string_lossy().into_owned();
        archive.file(&format!("tests/{name}"), 0o755, &fs::read(&test)?);
    }
    let mut modules = recipe.list("modules")?;
    archive.file("etc/modules", 0o644, modules.join("\n").as_bytes());
    modules.extend(recipe.list("modules-at-hand")?);
    add_modules(&mut archive, kernel, busybox, &modules)?;
    Ok(archive.finish())
}

/// Adds the named modules and all that they need, and the list by which `modprobe` knows the order.
fn add_modules(archive: &mut Archive, kernel: &Kernel, busybox: &Path, wanted: &[String]) -> Result<()> {
    let base = format!("lib/modules/{}", kernel.release);
    host::run(Command::new(busybox).arg("depmod").arg("-b").arg(&kernel.tree).arg(&kernel.release))?;
    let path = kernel.tree.join(&base).join("modules.dep");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let dependencies = parse_modules_dep(&text);

    let mut lines = String::new();
    let mut folders = BTreeSet::new();
    let mut files = BTreeSet::new();
    for module in with_dependencies(&dependencies, wanted)? {
        lines += &format!("{module}: {}\n", dependencies[module].join(" "));
        files.insert(format!("{base}/{module}"));
    }
    for file in &files {
        folders
            .extend(Path::new(file).ancestors().skip(1).map(|folder| folder.to_string_lossy().into_owned()));
    }
    for folder in folders.iter().filter(|folder| !["", "lib"].contains(&folder.as_str())) {
        archive.directory(folder);
    }
    for file in &files {
        archive.file(file, 0o644, &fs::read(kernel.tree.join(file))?);
    }
    archive.file(&format!("{base}/modules.dep"), 0o644, lines.as_bytes());
    Ok(())
}

/// Reads `modules.dep`: each line is a module's path, a colon and the paths of all that it needs.
fn parse_modules_dep(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(module, needs)| (module, needs.split_whitespace().collect())).collect()
}

fn with_dependencies<'a>(
    dependencies: &BTreeMap<&'a str, Vec<&'a str>>,
    wanted: &[String],
) -> Result<BTreeSet<&'a str>> {
    let mut found = BTreeSet::new();
    let mut pending = Vec::new();
    for name in wanted {
        let module = dependencies.keys().find(|path| module_name(path) == canonical(name));
        pending.push(*module.with_context(|| format!("the kernel has no module {name}"))?);
    }
    while let Some(module) = pending.pop() {
        if found.insert(module) {
            pending.extend(dependencies.get(module).into_iter().flatten());
        }
    }
    Ok(found)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split('.').next().unwrap_or(file))
}

/// Module names treat `-` and `_` alike.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/virtio.ko: kernel/a/ring.ko\n\
                       kernel/a/ring.ko:\n\
                       kernel/b/virtio-rng.ko: kernel/a/virtio.ko\n\
                       kernel/b/other.ko.xz:\n";

    #[test]
    fn dependencies_come_along() {
        let dependencies = parse_modules_dep(DEP);
        let closure = with_dependencies(&dependencies, &["virtio_rng".to_owned()]).expect("all are known");
        let names: Vec<_> = closure.into_iter().collect();
        assert_eq!(names, ["kernel/a/ring.ko", "kernel/a/virtio.ko", "kernel/b/virtio-rng.ko"]);
    }

    #[test]
    fn an_unknown_module_is_named() {
        let error =
            with_dependencies(&parse_modules_dep(DEP), &["floppy".to_owned()]).expect_err("no such module");
        assert!(error.to_string().contains("floppy"));
    }
}
