//! A suite: tests over programs and numbers of CPUs.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Artifacts, Engine, Program};

/// One test with one program and one number of CPUs.
#[derive(Debug)]
pub struct Case {
    /// The guests.
    pub artifacts: Arc<Artifacts>,
    /// What runs them.
    pub program: Program,
    /// How many CPUs the guest shall have.
    pub cpus: u32,
    /// The test's own folder, empty at first. Text in it is kept, disks (`*.img`) only of a test
    /// that failed.
    pub folder: PathBuf,
}

/// Tests to be run by one program.
#[derive(Debug)]
pub struct Suite {
    programs: Vec<Program>,
    trials: Vec<Trial>,
}

type Test = fn(&Case) -> Result<()>;

/// This host lacks what a test needs: the test returns it, and counts as skipped for this reason.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

impl Suite {
    /// An empty suite over the programs of [`Program::list_from_env`].
    ///
    /// # Errors
    /// If the environment names an unknown program.
    pub fn from_env() -> Result<Self> {
        Ok(Self { programs: Program::list_from_env()?, trials: Vec::new() })
    }

    /// Adds a test for every program, with each of these numbers of CPUs.
    pub fn matrix(&mut self, name: &str, cpus: &[u32], test: Test) {
        for program in self.programs.clone() {
            for &cpus in cpus {
                self.add(format!("{name}::{program}::cpus_{cpus}"), program, cpus, test);
            }
        }
    }

    /// Adds a test of minutes for every program, with each of these numbers of CPUs: only in a full run.
    pub fn full_matrix(&mut self, name: &str, cpus: &[u32], test: Test) {
        if full() {
            self.matrix(name, cpus, test);
        }
    }

    /// Adds a test for every program, with one CPU.
    pub fn test(&mut self, name: &str, test: Test) {
        for program in self.programs.clone() {
            self.add(format!("{name}::{program}"), program, 1, test);
        }
    }

    /// Adds a test of the software engine alone, with each of these numbers of CPUs.
    pub fn bt_matrix(&mut self, name: &str, cpus: &[u32], test: Test) {
        let program = Program::Worker(Engine::Bt);
        let wanted = self.programs.contains(&program);
        for &cpus in cpus.iter().filter(|_| wanted) {
            self.add(format!("{name}::{program}::cpus_{cpus}"), program, cpus, test);
        }
    }

    /// The same, only in a full run.
    pub fn full_bt_matrix(&mut self, name: &str, cpus: &[u32], test: Test) {
        if full() {
            self.bt_matrix(name, cpus, test);
        }
    }

    /// Adds a test of what only the worker has.
    pub fn worker_test(&mut self, name: &str, test: Test) {
        for program in self.programs.clone() {
            if program != Program::Qemu {
                self.add(format!("{name}::{program}"), program, 1, test);
            }
        }
    }

    /// Adds a test of what only the worker has, with each of these numbers of CPUs.
    pub fn worker_matrix(&mut self, name: &str, cpus: &[u32], test: Test) {
        for program in self.programs.clone() {
            for &cpus in cpus {
                if program != Program::Qemu {
                    self.add(format!("{name}::{program}::cpus_{cpus}"), program, cpus, test);
                }
            }
        }
    }

    /// Adds a test of the worker that needs KVM, with so many CPUs.
    pub fn kvm_test(&mut self, name: &str, cpus: u32, test: Test) {
        let program = Program::Worker(Engine::Kvm);
        if self.programs.contains(&program) {
            self.add(format!("{name}::{program}::cpus_{cpus}"), program, cpus, test);
        }
    }

    /// Adds a test of the worker in which no engine has a part.
    pub fn engineless_test(&mut self, name: &str, test: Test) {
        let program = Program::Worker(Engine::Bt);
        if self.programs.contains(&program) {
            self.add(name.to_owned(), program, 1, test);
        }
    }

    /// The same, only in a full run.
    pub fn full_engineless_test(&mut self, name: &str, test: Test) {
        if full() {
            self.engineless_test(name, test);
        }
    }

    /// Runs the tests that the command line asks for, as `cargo test` would.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        // Guests use several CPUs each, and a host that is short of them makes a test of patience.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        arguments.test_threads.get_or_insert((cpus / 4).max(1));
        libtest_mimic::run(&arguments, self.trials).exit_code()
    }

    fn add(&mut self, name: String, program: Program, cpus: u32, test: Test) {
        let folder = output_folder().join(name.replace("::", "-"));
        self.trials.push(Trial::ignorable_test(name, move || run(program, cpus, folder, test)));
    }
}

/// Whether tests of many minutes are wanted.
fn full() -> bool {
    std::env::var_os("ARNIA_TEST_FULL").is_some()
}

fn output_folder() -> PathBuf {
    std::env::var_os("ARNIA_TEST_OUTPUT")
        .map_or_else(|| std::env::temp_dir().join("arnia-vm-test"), PathBuf::from)
}

fn run(program: Program, cpus: u32, folder: PathBuf, test: Test) -> Result<Completion, Failed> {
    for variable in ["ARNIA_GUESTS", "ARNIA_VMM"] {
        if std::env::var_os(variable).is_none() {
            return Ok(Completion::ignored_with(format!(
                "{variable} is not set; run it by `cargo xtask test`"
            )));
        }
    }
    let artifacts = Arc::new(Artifacts::from_env().map_err(failed)?);
    if let Some(reason) = program.unsupported(&artifacts) {
        return Ok(Completion::ignored_with(reason));
    }
    let case = Case { artifacts, program, cpus, folder };
    match case.run(test) {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast_ref::<Unavailable>() {
            Some(unavailable) => Ok(Completion::ignored_with(&unavailable.0)),
            None => Err(failed(error)),
        },
    }
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

impl Case {
    fn run(&self, test: Test) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        test(self)
            .with_context(|| format!("failed; its console and messages are in {}", self.folder.display()))?;
        for path in fs::read_dir(&self.folder)?.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "img") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// A file in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A disk of this size in the test's folder, empty.
    ///
    /// # Errors
    /// If the host's disk is full.
    pub fn empty_disk(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        fs::File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }
}
