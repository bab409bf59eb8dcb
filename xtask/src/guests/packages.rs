//! Packages of one Debian release, whatever release the host itself runs.
//!
//! Apt gets package lists of its own, apart from the host's: nothing here is installed on the host,
//! and the guests are the same on each host. The mirror and proxy settings are the host's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host;

/// The Debian release that all guests are made from.
pub(crate) const RELEASE: &str = "bookworm";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// The package lists of [`RELEASE`], up to date.
pub(crate) struct DebianPackages {
    config: PathBuf,
    sources: Vec<String>,
}

impl DebianPackages {
    /// Fetches the package lists into `folder`.
    pub(crate) fn update(folder: &Path) -> Result<Self> {
        println!("fetching the package lists of Debian {RELEASE}");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let sources = sources(&host_targets());
        fs::write(folder.join("sources.list"), sources.join("\n") + "\n")?;
        fs::write(folder.join("status"), "")?;
        let config = folder.join("apt.conf");
        fs::write(&config, apt_config(folder))?;
        let packages = Self { config, sources };
        host::run(packages.apt("apt-get").args(["update", "-qq"]))
            .context("cannot reach the Debian mirror; look at the host's apt sources and proxy")?;
        Ok(packages)
    }

    /// Lines for a `sources.list`.
    pub(crate) fn sources(&self) -> &[String] {
        &self.sources
    }

    /// One field of the newest version of a package, for example `Version`.
    pub(crate) fn field(&self, package: &str, field: &str) -> Result<String> {
        let shown = host::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))
            .with_context(|| format!("Debian {RELEASE} has no package {package}"))?;
        let value = shown.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        value.map(str::to_owned).with_context(|| format!("package {package} has no field {field}"))
    }

    /// Downloads the newest version of a package and unpacks it into `folder`.
    pub(crate) fn unpack(&self, package: &str, folder: &Path) -> Result<()> {
        println!("downloading {package}");
        let download = folder.with_extension("deb.d");
        fs::create_dir_all(&download)?;
        host::run(self.apt("apt-get").args(["download", "-qq", package]).current_dir(&download))?;
        let mut archives = fs::read_dir(&download)?.flatten().map(|entry| entry.path());
        let Some(archive) = archives.next() else {
            bail!("apt-get downloaded nothing for {package}");
        };
        host::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(folder))?;
        fs::remove_dir_all(&download)?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C.UTF-8");
        command
    }
}

fn apt_config(folder: &Path) -> String {
    let folder = folder.display();
    // The host's own apt.conf.d stays in force: it may name a proxy.
    format!(
        "Dir::Etc::SourceList \"{folder}/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\n\
         Dir::State \"{folder}\";\n\
         Dir::State::Lists \"{folder}/lists\";\n\
         Dir::State::Status \"{folder}/status\";\n\
         Dir::Cache \"{folder}\";\n\
         Dir::Cache::Archives \"{folder}/archives\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Sandbox::User \"root\";\n"
    )
}

/// The host's package sources: a line of `label|mirror` each.
fn host_targets() -> String {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    // A host without Debian sources is no error: the default mirror serves.
    host::output(&mut targets).unwrap_or_default()
}

/// Sources for [`RELEASE`] on the mirrors that the host uses for its own Debian packages.
fn sources(host_targets: &str) -> Vec<String> {
    let mirror = |label: &str, default: &str| {
        let mirrors: BTreeSet<&str> = host_targets
            .lines()
            .filter_map(|line| line.split_once('|'))
            .filter(|(target, _)| *target == label)
            .map(|(_, mirror)| mirror.trim_end_matches('/'))
            .collect();
        mirrors.first().map_or(default.to_owned(), |mirror| (*mirror).to_owned())
    };
    let debian = mirror("Debian", DEFAULT_MIRROR);
    let security = mirror("Debian-Security", DEFAULT_SECURITY_MIRROR);
    [
        format!("{debian} {RELEASE} main"),
        format!("{debian} {RELEASE}-updates main"),
        format!("{security} {RELEASE}-security main"),
    ]
    .map(|source| format!("deb [signed-by={KEYRING}] {source}"))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_hosts_own() {
        let host = "Google|http://packages.example/\nDebian|http://mirror.example/debian/\n\
                    Debian|http://mirror.example/debian/\n";
        let lines = sources(host);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with("http://mirror.example/debian bookworm main"), "{}", lines[0]);
        assert!(
            lines[2].ends_with(&format!("{DEFAULT_SECURITY_MIRROR} bookworm-security main")),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn a_host_without_debian_sources_gets_the_default_mirror() {
        assert!(sources("").iter().all(|line| line.contains("deb.debian.org")));
    }
}
