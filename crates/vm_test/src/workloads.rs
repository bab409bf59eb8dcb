//! The program of the crate `workloads`, which does the same on the host and in guests, so that speed
//! and results can be compared.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{After, Artifacts, Console, Guest, KillOnDrop, Patience, Program};

/// The program, and an initramfs that has it besides busybox.
#[derive(Clone, Debug)]
pub struct Workloads {
    program: PathBuf,
    initramfs: PathBuf,
}

/// Which rows to do, and how.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Parts of names, with commas between; a row is done if its name contains one. Empty means all.
    pub rows: String,
    /// How long to repeat each row. Each is done at least twice.
    pub budget: Duration,
    /// Whether to stay on one CPU, so that a host with several is like a guest with one.
    pub pin: bool,
}

/// What came out of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Group and name, with a slash between.
    pub name: String,
    /// What one operation is.
    pub operation: String,
    /// Of the fastest repetition, by the clock of the machine that did it.
    pub ns_per_op: f64,
    /// Equal everywhere.
    pub checksum: String,
}

/// What came out of running the program once.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// In the order in which they were done.
    pub rows: Vec<Row>,
    /// Rows that failed, each with the reason.
    pub failures: Vec<String>,
    /// How long all of it took, by the clock of the machine that did it.
    pub lasted: Duration,
    /// How long it took by the host's clock.
    pub watched: Duration,
    /// From the start of the guest's program to its first process.
    pub boot_to_init: Option<Duration>,
}

impl Workloads {
    /// Finds the program in the folder that `ARNIA_WORKLOADS` names.
    ///
    /// # Errors
    /// If the variable is not set or what it names is not there.
    pub fn from_env() -> Result<Self> {
        let folder = std::env::var_os("ARNIA_WORKLOADS").map(PathBuf::from);
        let folder = folder.context("no workloads to run: use `cargo xtask`, which builds them")?;
        let found = Self { program: folder.join("workloads"), initramfs: folder.join("initramfs.cpio") };
        for file in [&found.program, &found.initramfs] {
            ensure!(file.is_file(), "ARNIA_WORKLOADS: there is no {}", file.display());
        }
        Ok(found)
    }

    /// The initramfs that has the program.
    pub fn initramfs(&self) -> &Path {
        &self.initramfs
    }

    /// Runs it on the host. `folder` gets what it prints, `told` each row when it comes.
    ///
    /// # Errors
    /// If a row fails.
    pub fn native(
        &self,
        artifacts: &Artifacts,
        selection: &Selection,
        folder: &Path,
        told: &mut dyn FnMut(&Row),
    ) -> Result<Session> {
        std::fs::create_dir_all(folder)?;
        let mut command = Command::new(&self.program);
        command.env_clear().arg("--busybox").arg(&artifacts.busybox.program);
        command.args(["--budget-ms", &selection.budget.as_millis().to_string()]);
        if !selection.rows.is_empty() {
            command.args(["--rows", &selection.rows]);
        }
        if selection.pin {
            command.arg("--pin");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut child = KillOnDrop(child);
        let (input, output) = (child.0.stdin.take(), child.0.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { bail!("the program has no pipes") };
        let mut console = Console::new(input, output, File::create(folder.join("native.log"))?);
        let followed = follow(&mut console, told);
        drop(console);
        // Whatever went wrong, how the program ended says more; one that hangs must not be waited for.
        let session = match followed {
            Ok(session) => session,
            Err(error) => {
                let ended =
                    child.0.try_wait()?.map_or("it still runs".to_owned(), |status| status.to_string());
                return Err(error.context(format!("the workloads failed on the host ({ended})")));
            }
        };
        child.0.wait()?;
        ensure!(session.failures.is_empty(), "failed on the host: {}", session.failures.join("; "));
        Ok(session)
    }

    /// Refuses parts of names that no row has.
    ///
    /// # Errors
    /// Which part that is, and what rows there are.
    pub fn check_rows(&self, parts: &[String]) -> Result<()> {
        let output = Command::new(&self.program).arg("--list").output();
        let output = output.with_context(|| format!("cannot start {}", self.program.display()))?;
        let names = String::from_utf8_lossy(&output.stdout);
        for part in parts {
            let known = names.lines().any(|name| name.contains(part.as_str()));
            ensure!(known, "no row has {part:?} in its name; there are:\n{names}");
        }
        Ok(())
    }

    /// Runs it in a guest, which then turns itself off. Rows that fail are for the caller to judge.
    ///
    /// # Errors
    /// If the guest does not come that far.
    pub fn guest(
        &self,
        artifacts: &Artifacts,
        program: &Program,
        cpus: u32,
        selection: &Selection,
        folder: &Path,
        told: &mut dyn FnMut(&Row),
    ) -> Result<Session> {
        let guest = Guest::busybox(artifacts).initrd(&self.initramfs).cpus(cpus).memory_mib(512);
        let mut guest = guest.test("workloads").variable("budget_ms", selection.budget.as_millis());
        if !selection.rows.is_empty() {
            guest = guest.variable("rows", &selection.rows);
        }
        if selection.pin {
            guest = guest.variable("pin", 1);
        }
        let mut vm = guest.after(After::Poweroff).start(program, folder)?;
        vm.console().expect("ARNIA-INIT", Patience::Boot)?;
        let boot_to_init = vm.started().elapsed();
        let mut session = follow(vm.console(), told)?;
        session.boot_to_init = Some(boot_to_init);
        vm.wait(Patience::Shutdown)?.expect_code(0)?;
        Ok(session)
    }
}

/// Reads what the program prints to its end.
fn follow(console: &mut Console, told: &mut dyn FnMut(&Row)) -> Result<Session> {
    let mut session = Session::default();
    let mut begun = None;
    let mut others = String::new();
    loop {
        let line = console.expect("\n", Patience::Command)?;
        match parse(&line) {
            Some(Line::Begin) => begun = Some(Instant::now()),
            Some(Line::Row(row)) => {
                told(&row);
                session.rows.push(row);
            }
            Some(Line::Fail(message)) => session.failures.push(message),
            Some(Line::Done(lasted)) => {
                session.lasted = lasted;
                session.watched = begun.context("the program ended before it began")?.elapsed();
                return Ok(session);
            }
            None if line.starts_with("ARNIA-TEST workloads") => {
                bail!("the program failed in the guest:\n{others}{line}");
            }
            None => others += &(line + "\n"),
        }
    }
}

/// The rows among lines that the program printed, and what failed.
pub fn parse_rows(text: &str) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match parse(line) {
            Some(Line::Row(row)) => rows.push(row),
            Some(Line::Fail(message)) => failures.push(message),
            _ => {}
        }
    }
    (rows, failures)
}

/// A line that the program prints.
#[derive(Debug, PartialEq)]
enum Line {
    Begin,
    Row(Row),
    Fail(String),
    Done(Duration),
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.split_whitespace();
    match words.next()? {
        "begin" => Some(Line::Begin),
        "done" => Some(Line::Done(Duration::from_nanos(words.next()?.parse().ok()?))),
        "fail" => Some(Line::Fail(words.collect::<Vec<_>>().join(" "))),
        "row" => {
            let (name, figure, checksum) = (words.next()?, words.next()?, words.next()?);
            let operation = words.collect::<Vec<_>>().join(" ");
            let ns_per_op = figure.parse().ok().filter(|figure| *figure > 0.0)?;
            let (name, checksum) = (name.to_owned(), checksum.to_owned());
            Some(Line::Row(Row { name, operation, ns_per_op, checksum }))
        }
        _ => None,
    }
}

/// Sentences about all in which two sessions came to other results.
pub fn differences(expected: &[Row], found: &[Row]) -> Vec<String> {
    let mut sentences = Vec::new();
    for row in expected {
        match found.iter().find(|other| other.name == row.name) {
            None => sentences.push(format!("{} is missing", row.name)),
            Some(other) if other.checksum != row.checksum => {
                sentences.push(format!("{} gave {} instead of {}", row.name, other.checksum, row.checksum));
            }
            Some(_) => {}
        }
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::program_on_console;

    fn session(script: &str) -> Result<Session> {
        let (_child, mut console) = program_on_console("sh", &["-c", script]);
        follow(&mut console, &mut |_| ())
    }

    #[test]
    fn rows_are_read_among_other_lines() {
        let script = "echo noise; echo begin; echo row a/b 1.5 00ff fork and wait; echo fail a/c why; echo done 2000000000";
        let session = session(script).expect("it is well formed");
        let [row] = &session.rows[..] else { panic!("one row: {session:?}") };
        assert_eq!((&*row.name, &*row.operation, &*row.checksum), ("a/b", "fork and wait", "00ff"));
        assert!((row.ns_per_op - 1.5).abs() < 1e-9);
        assert_eq!(session.failures, ["a/c why"]);
        assert_eq!(session.lasted, Duration::from_secs(2));
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_message() {
        let script = "echo begin; echo why; echo 'ARNIA-TEST workloads failed (status 1)'; read x";
        let error = session(script).expect_err("it failed").to_string();
        assert!(error.contains("why"), "{error}");
        assert!(session("echo begin; echo row a/b 0 00 x").is_err(), "no end, and a row without time");
    }

    #[test]
    fn other_results_and_missing_ones_are_differences() {
        let row = |name: &str, checksum: &str| Row {
            name: name.to_owned(),
            operation: String::new(),
            ns_per_op: 1.0,
            checksum: checksum.to_owned(),
        };
        let native = [row("a", "1"), row("b", "2"), row("c", "3")];
        assert!(differences(&native, &native).is_empty());
        let found = differences(&native, &[row("a", "1"), row("b", "9")]);
        assert_eq!(found, ["b gave 9 instead of 2", "c is missing"]);
    }
}
