//! What runs a guest.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::guest::After;
use crate::{Artifacts, Guest, Patience};

/// A CPU engine of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Binary translation.
    Bt,
    /// Hardware virtualization.
    Kvm,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bt => "bt",
            Self::Kvm => "kvm",
        })
    }
}

/// A program that runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `arnia-vmm` with this engine; where it lies, [`worker_path`] knows.
    Worker(Engine),
    /// Debian's QEMU without hardware help.
    Qemu,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(engine) => engine.fmt(f),
            Self::Qemu => f.write_str("qemu"),
        }
    }
}

impl FromStr for Program {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "bt" => Ok(Self::Worker(Engine::Bt)),
            "kvm" => Ok(Self::Worker(Engine::Kvm)),
            "qemu" => Ok(Self::Qemu),
            _ => bail!("no program is called {word}; use bt, kvm or qemu"),
        }
    }
}

/// The worker that is tested: `ARNIA_VMM`.
///
/// # Errors
/// If the variable is not set or there is no such file.
pub fn worker_path() -> Result<PathBuf> {
    let path = std::env::var_os("ARNIA_VMM").map(PathBuf::from);
    let path = path.context("no worker to run: use `cargo xtask`, which builds it")?;
    if !path.is_file() {
        bail!("ARNIA_VMM names {}, which is not there", path.display());
    }
    Ok(path)
}

impl Program {
    /// The programs that `ARNIA_TEST_PROGRAMS` lists, of `bt`, `kvm` and `qemu`; by default the
    /// worker's engines. With `qemu`, the tests test the harness and the guests.
    ///
    /// # Errors
    /// If the list has another word.
    pub fn list_from_env() -> Result<Vec<Self>> {
        let list = std::env::var("ARNIA_TEST_PROGRAMS").unwrap_or_else(|_| "bt,kvm".to_owned());
        let programs: Result<_> = list.split(',').map(|word| word.trim().parse()).collect();
        programs.context("ARNIA_TEST_PROGRAMS")
    }

    /// Why the program cannot run guests on this host at all, if that is so.
    ///
    /// The worker itself is the judge: it refuses an engine that does not serve here. Whatever else
    /// goes wrong is for the tests to find.
    pub(crate) fn unsupported(self, artifacts: &Artifacts) -> Option<String> {
        static KVM: OnceLock<Option<String>> = OnceLock::new();
        match self {
            Self::Worker(Engine::Kvm) => KVM.get_or_init(|| self.refusal(artifacts)).clone(),
            Self::Worker(Engine::Bt) => None,
            Self::Qemu => (!runs("qemu-system-x86_64")).then(|| "there is no qemu-system-x86_64".to_owned()),
        }
    }

    fn refusal(self, artifacts: &Artifacts) -> Option<String> {
        let folder = std::env::temp_dir().join(format!("arnia-probe-{}", std::process::id()));
        let guest = Guest::busybox(artifacts).after(After::Poweroff);
        let exit = guest.start(&self, &folder).and_then(|mut vm| vm.wait(Patience::Boot));
        let _ = std::fs::remove_dir_all(&folder);
        let exit = exit.ok().filter(|exit| exit.code == Some(2))?;
        Some(exit.stderr.lines().next().unwrap_or("the worker refuses this engine").to_owned())
    }
}

fn runs(program: &str) -> bool {
    let quiet = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}
