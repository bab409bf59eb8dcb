//! Real programs as tests: Debian's compressors, interpreters and compilers do the same in a guest as on
//! the host, where the same files are executed (`guests/software`, `guests/software_tests`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{Artifacts, Guest, Patience, Program, sha256_hex};

/// One of the scripts in `guests/software_tests`, and what it prints.
pub type Outcomes = BTreeMap<String, String>;

/// The tests, packed for a guest.
#[derive(Debug)]
pub struct Software<'a> {
    artifacts: &'a Artifacts,
    /// An archive of all scripts.
    archive: PathBuf,
}

impl<'a> Software<'a> {
    /// Packs the scripts into `folder`.
    ///
    /// # Errors
    /// If they cannot be read, or the archive not be written.
    pub fn pack(artifacts: &'a Artifacts, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/software_tests");
        let archive = folder.join("tests.tar");
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--create"]);
        let packed = tar.arg("--file").arg(&archive).arg("--directory").arg(scripts).arg(".").status()?;
        ensure!(packed.success(), "cannot pack the software tests");
        Ok(Self { artifacts, archive })
    }

    /// What the tests print on the host. Kept beside the guests: it stays true as long as they do.
    ///
    /// # Errors
    /// If one fails here, or the host does not allow to change the root directory.
    pub fn native(&self, names: &[&str]) -> Result<Outcomes> {
        let archive = sha256_hex(&fs::read(&self.archive)?);
        let root = &self.artifacts.software.root;
        let of = root.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let cache = self.artifacts.cache("software-results")?;
        let mut outcomes = Outcomes::new();
        for name in names {
            let kept = cache.join(format!("{of}-{}-{name}", &archive[..16]));
            let text = match fs::read_to_string(&kept) {
                Ok(text) => text,
                Err(_) => {
                    let text = self.run_natively(root, name)?;
                    let partial = kept.with_extension(std::process::id().to_string());
                    fs::write(&partial, &text)?;
                    fs::rename(&partial, &kept)?;
                    text
                }
            };
            outcomes.insert((*name).to_owned(), text);
        }
        Ok(outcomes)
    }

    fn run_natively(&self, root: &Path, name: &str) -> Result<String> {
        // Root, or who is root in a name space of his own; nothing of this is seen outside.
        let script = r#"root=$1 archive=$2 name=$3
            mount --make-rprivate / 2> /dev/null || true
            mount -t tmpfs tmpfs "$root/tmp"
            mount -t proc proc "$root/proc"
            mount --rbind /sys "$root/sys"
            mount --rbind /dev "$root/dev"
            mkdir "$root/tmp/tests"
            tar -C "$root/tmp/tests" -xf "$archive"
            exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
                sh /tmp/tests/run "$name""#;
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", script, "native"]);
        let output = command.arg(root).arg(&self.archive).arg(name).output().context("unshare")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("software test {name} failed on the host ({}):\n{text}{errors}", output.status);
        }
        Ok(text)
    }

    /// What the tests print in a guest.
    ///
    /// # Errors
    /// If one fails there or does not end.
    pub fn guest(
        &self,
        program: &Program,
        cpus: u32,
        names: &[&str],
        folder: &Path,
        told: &mut dyn FnMut(&str),
    ) -> Result<Outcomes> {
        let guest = Guest::software(self.artifacts, &self.archive, names).cpus(cpus);
        let mut vm = guest.start(program, folder)?;
        let mut outcomes = Outcomes::new();
        for name in names {
            vm.console().expect(&format!("ARNIA-SOFTWARE begin {name}\n"), Patience::Boot)?;
            let printed = vm.console().expect(&format!("ARNIA-SOFTWARE end {name} "), Patience::Software)?;
            let status = vm.console().expect("\n", Patience::Command)?;
            ensure!(
                status.trim() == "0",
                "software test {name} failed in the guest, status {status}:\n{printed}"
            );
            told(name);
            outcomes.insert((*name).to_owned(), printed);
        }
        vm.console().expect("ARNIA-SOFTWARE done", Patience::Command)?;
        vm.wait(Patience::Shutdown)?.expect_code(0)?;
        Ok(outcomes)
    }
}

/// Where the guest has printed otherwise than the host: the first such line of each test.
pub fn differences(native: &Outcomes, guest: &Outcomes) -> Vec<String> {
    let different = native.iter().filter(|(name, text)| guest.get(*name) != Some(text));
    different
        .map(|(name, host)| {
            let guest = guest.get(name).map_or("", String::as_str);
            let mut lines = host.lines().zip(guest.lines().chain(std::iter::repeat("nothing")));
            match lines.find(|(host, guest)| host != guest) {
                Some((host, guest)) => format!("{name}: the host printed {host:?}, the guest {guest:?}"),
                None => format!("{name}: the guest printed more than the host"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_first_line() {
        let outcomes = |text: &str| Outcomes::from([("one".to_owned(), text.to_owned())]);
        let native = outcomes("= a\n= b\n");
        assert!(differences(&native, &outcomes("= a\n= b\n")).is_empty());
        for (guest, said) in
            [("= a\n= c\n", "= c"), ("= a\n", "nothing"), ("= a\n= b\n= c\n", "more"), ("", "nothing")]
        {
            let found = differences(&native, &outcomes(guest));
            assert!(found.len() == 1 && found[0].contains(said), "{found:?}");
        }
        assert_eq!(differences(&native, &Outcomes::new()).len(), 1);
    }
}
