//! The programs that run in the machine, and the libraries that they need.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{host, task_test};

/// The programs that run inside: those that other tests use, so that little is built for this.
pub(super) struct Programs {
    worker: PathBuf,
    boot_tests: PathBuf,
    engine_tests: PathBuf,
    switch_tests: PathBuf,
}

impl Programs {
    pub(super) fn build(workspace: &Workspace) -> Result<Self> {
        task_test::build_worker()?;
        let test = |arguments: &[&str]| {
            let mut cargo = host::cargo();
            cargo.args(["test", "--quiet", "--no-run", "--message-format=json"]).args(arguments);
            executable(&host::output(&mut cargo)?)
                .with_context(|| format!("cargo made no test program of {arguments:?}"))
        };
        Ok(Self {
            worker: workspace.worker(),
            boot_tests: test(&["--package", "vm_test", "--test", "boot"])?,
            engine_tests: test(&["--package", "cpu_kvm", "--lib"])?,
            switch_tests: test(&["--package", "difftest", "--test", "switch"])?,
        })
    }

    /// With their names inside.
    pub(super) fn all(&self) -> [(&'static str, &Path); 4] {
        [
            ("arnia-vmm", &self.worker),
            ("boot", &self.boot_tests),
            ("engine", &self.engine_tests),
            ("switch", &self.switch_tests),
        ]
    }

    /// The shared libraries that they need.
    pub(super) fn libraries(&self) -> Result<BTreeSet<PathBuf>> {
        let mut libraries = BTreeSet::new();
        for (_, program) in self.all() {
            libraries.extend(parse_ldd(&host::output(Command::new("ldd").arg(program))?));
        }
        Ok(libraries)
    }
}

/// The files in what `ldd` prints: `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn parse_ldd(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(PathBuf::from)
    })
}

/// The test program among cargo's messages; cargo builds a package's own programs with its tests.
fn executable(messages: &str) -> Option<PathBuf> {
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message.get("profile")?.get("test")?.as_bool()?;
        message.get("executable")?.as_str().filter(|_| is_test).map(PathBuf::from)
    });
    executables.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_is_found_among_what_cargo_built() {
        let artifact = |test: bool, executable: serde_json::Value| {
            serde_json::json!({ "profile": { "test": test }, "executable": executable }).to_string()
        };
        let messages = [
            artifact(false, serde_json::Value::Null),
            "not json".to_owned(),
            artifact(true, "/t/boot-1".into()),
            artifact(false, "/t/the-program".into()),
            "{\"reason\":\"build-finished\"}".to_owned(),
        ];
        assert_eq!(executable(&messages.join("\n")), Some(PathBuf::from("/t/boot-1")));
        assert_eq!(executable(""), None);
    }

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let found: Vec<_> = parse_ldd(text).collect();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }
}
