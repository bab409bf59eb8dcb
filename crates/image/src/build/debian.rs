//! The base layer of a Debian image: a root file system from packages, on a disk without partitions.
//!
//! Nothing is mounted and no root is needed: mmdebstrap makes an archive in a user namespace, which becomes a
//! disk. The kernel and initrd that the packages brought are taken out of
//! it; the host boots them directly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::image::PersonalitySource;

use super::{Key, Layer, Programs};
use crate::error::AboutFile;
use crate::files::RemoveUnlessKept;
use crate::progress::Progress;
use crate::recipe::{Recipe, RecipePersonality};
use crate::root_disk::{self, APPEND};
use crate::{Error, Result, Session, tools};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// Runs before packages are configured: a small initrd, so that booting is quick.
const BEFORE: &str = include_str!("debian/before.sh");
/// Runs in the new system when its packages are there.
const AFTER: &str = include_str!("debian/after.sh");
const AGENT_UNIT: &str = include_str!("../../../agent/init/arnia-agent.service");
const FIRSTBOOT_UNIT: &str = include_str!("../../../agent/init/arnia-firstboot.service");

pub(super) fn key(release: &str, recipe: &Recipe, programs: &Programs) -> Result<String> {
    let mut key = Key::new("debian").text(release).text(&recipe.packages.join(" "));
    key = key.text(&recipe.disk_size().to_string()).text(&format!("{:?}", recipe.personality));
    for text in [BEFORE, AFTER, AGENT_UNIT, FIRSTBOOT_UNIT] {
        key = key.text(text);
    }
    Ok(key.file(&programs.agent)?.finish())
}

pub(super) fn build(
    session: &Session<'_>,
    release: &str,
    recipe: &Recipe,
    programs: &Programs,
    progress: &mut dyn Progress,
) -> Result<Layer> {
    tools::require_for_debian()?;
    let folder = session.partial("debian");
    let _undo = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    progress.begin(
        &format!("installing Debian {release}, {} packages and what they need", recipe.packages.len()),
        None,
    );
    let archive = folder.join("root.tar");
    bootstrap(release, recipe, programs, &folder, &archive, progress)?;
    progress.begin("writing the disk", None);
    make_disk(&archive, &folder, recipe, progress)?;
    fs::remove_file(&archive).about("remove", &archive)?;
    let mut take = |name: &str, what: &str| {
        let path = folder.join(name);
        let len = path.metadata().about("read", &path)?.len();
        progress.begin(what, Some(len));
        session.take_file(&path, progress)
    };
    Ok(Layer {
        kernel: take(root_disk::KERNEL, "taking the kernel")?,
        initrd: Some(take(root_disk::INITRD, "taking the initrd")?),
        disk: take(root_disk::DISK, "taking the disk")?,
        append: APPEND.to_owned(),
        personality: PersonalitySource::Agent,
        firmware: None,
    })
}

/// Lets mmdebstrap make the system, as an archive that keeps owners and modes.
fn bootstrap(
    release: &str,
    recipe: &Recipe,
    programs: &Programs,
    folder: &Path,
    archive: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let mut command = tools::command("mmdebstrap");
    command.args(["--variant=minbase", "--format=tar"]);
    if !recipe.packages.is_empty() {
        command.arg(format!("--include={}", recipe.packages.join(",")));
    }
    // Files go in through mmdebstrap's own channel: without root, the program that runs the hooks may not
    // be allowed to read this user's folders.
    let upload = |from: &Path, to: &str| {
        let quoted = from.to_string_lossy().replace('\'', r"'\''");
        format!("upload '{quoted}' {to}")
    };
    let script = |name: &str, text: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text).about("write", &path)?;
        Ok(path)
    };
    let (before, after) = (script("before.sh", BEFORE)?, script("after.sh", AFTER)?);
    let (agent, firstboot) = (script("a.service", AGENT_UNIT)?, script("f.service", FIRSTBOOT_UNIT)?);
    command.arg(format!("--essential-hook={}", upload(&before, "/tmp/before.sh")));
    command.arg(r#"--essential-hook=chroot "$1" sh -eu /tmp/before.sh"#);
    for (from, to) in [
        (programs.agent.as_path(), "/usr/sbin/arnia-agent"),
        (&agent, "/etc/systemd/system/arnia-agent.service"),
        (&firstboot, "/etc/systemd/system/arnia-firstboot.service"),
        (&after, "/tmp/after.sh"),
    ] {
        command.arg(format!("--customize-hook={}", upload(from, to)));
    }
    let identity = match recipe.personality {
        Some(RecipePersonality::CloudInit) => "cloud-init",
        _ => "agent",
    };
    command.arg(format!(r#"--customize-hook=chroot "$1" sh -eu /tmp/after.sh {identity}"#));
    command.arg(r#"--customize-hook=rm -f "$1/tmp/before.sh" "$1/tmp/after.sh""#);
    command.arg(release).arg(archive).args(sources(release, &host_targets()));
    tools::run(&mut command, progress)
}

/// Turns the archive into a disk, and takes the kernel and initrd out of it.
fn make_disk(archive: &Path, folder: &Path, recipe: &Recipe, progress: &mut dyn Progress) -> Result<()> {
    let remedy = "the recipe's packages must include a kernel, such as linux-image-cloud-amd64, and a disk that is large enough";
    root_disk::make(archive, folder, recipe.disk_size().0, progress)
        .map_err(|error| error.with_remedy(remedy))?;
    if !folder.join(root_disk::KERNEL).exists() || !folder.join(root_disk::INITRD).exists() {
        return Err(Error::bad_input("the system has no kernel or no initrd").with_remedy(remedy));
    }
    Ok(())
}

/// The host's package sources: a line of `label|mirror` each.
fn host_targets() -> String {
    let mut targets: Command = tools::command("apt-get");
    targets.args(["indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    // A host without Debian sources is no error: the default mirror serves.
    targets.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Sources for a release on the mirrors that the host uses for its own Debian packages.
fn sources(release: &str, host_targets: &str) -> Vec<String> {
    let mirror = |label: &str, default: &str| {
        let mirrors: BTreeSet<&str> = host_targets
            .lines()
            .filter_map(|line| line.split_once('|'))
            .filter(|(target, _)| *target == label)
            .map(|(_, mirror)| mirror.trim_end_matches('/'))
            .collect();
        mirrors.first().map_or(default.to_owned(), |mirror| (*mirror).to_owned())
    };
    let debian = mirror("Debian", MIRROR);
    let mut lines = vec![format!("{debian} {release} main")];
    if !["sid", "unstable"].contains(&release) {
        let security = mirror("Debian-Security", SECURITY_MIRROR);
        lines.push(format!("{debian} {release}-updates main"));
        lines.push(format!("{security} {release}-security main"));
    }
    lines.into_iter().map(|source| format!("deb [signed-by={KEYRING}] {source}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_hosts_own() {
        let host = "Google|http://packages.example/\nDebian|http://mirror.example/debian/\n";
        let lines = sources("bookworm", host);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with("http://mirror.example/debian bookworm main"), "{}", lines[0]);
        assert!(lines[2].ends_with(&format!("{SECURITY_MIRROR} bookworm-security main")), "{}", lines[2]);
        assert_eq!(sources("sid", "").len(), 1);
    }
}
