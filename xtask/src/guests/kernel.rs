//! The stock Debian cloud kernel with its modules.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::packages::DebianPackages;

const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// Package version, for example `6.1.192-2`.
    pub(crate) version: String,
    /// What `uname -r` says in the guest.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The unpacked package, with `lib/modules/<release>` in it.
    pub(crate) tree: PathBuf,
}

/// Downloads and unpacks the kernel that the metapackage stands for now.
pub(crate) fn fetch(mirror: &DebianPackages, cache: &Path) -> Result<Kernel> {
    let package = real_package(&mirror.field(METAPACKAGE, "Depends")?)
        .with_context(|| format!("{METAPACKAGE} depends on no kernel"))?;
    let version = mirror.field(&package, "Version")?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let name = format!("kernel-{}", version.replace([':', '~', '/'], "_"));
    let folder = super::artifact(cache, &name, |folder| mirror.unpack(&package, &folder.join("tree")))?;
    let tree = folder.join("tree");
    Ok(Kernel { version, image: tree.join(format!("boot/vmlinuz-{release}")), release, tree })
}

/// Finds the kernel package in a `Depends` field such as `linux-image-6.1.0-1-cloud-amd64 (= 6.1.4-1)`.
fn real_package(depends: &str) -> Option<String> {
    let names = depends.split([',', '|']).filter_map(|part| part.split_whitespace().next());
    names.into_iter().find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metapackage_names_the_kernel() {
        for (depends, package) in [
            ("linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)", Some("linux-image-6.1.0-56-cloud-amd64")),
            ("linux-base, linux-image-6.12.1-cloud-amd64", Some("linux-image-6.12.1-cloud-amd64")),
            ("linux-base", None),
        ] {
            assert_eq!(real_package(depends).as_deref(), package, "{depends}");
        }
    }
}
