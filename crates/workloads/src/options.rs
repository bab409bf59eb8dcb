//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::disk::DiskJob;

/// What the program shall do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// End at once.
    Exit,
    /// Print the names of all rows.
    List,
    /// Measure.
    Measure(Options),
    /// Move data to or from a disk.
    Disk(DiskJob),
    /// Reset a SCSI disk.
    Reset(PathBuf),
}

/// What to measure, and for how long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Parts of names; a row is wanted if its name contains one of them. None means all.
    pub(crate) rows: Vec<String>,
    /// How long to repeat each row. Each is run at least twice, for the checksums.
    pub(crate) budget: Duration,
    /// Whether to stay on one CPU, so that a host with several is like a guest with one.
    pub(crate) pin: bool,
    /// The busybox that runs scripts.
    pub(crate) busybox: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            budget: Duration::from_millis(300),
            pin: false,
            busybox: PathBuf::from("/bin/busybox"),
        }
    }
}

impl Options {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// A sentence about the first argument that makes no sense.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Task, String> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--exit" => return Ok(Task::Exit),
                "--list" => return Ok(Task::List),
                "--reset" => return Ok(Task::Reset(value()?.into())),
                "--disk" => {
                    let mut job = DiskJob::new(value()?.into());
                    arguments.try_for_each(|part| job.set(&part))?;
                    return Ok(Task::Disk(job));
                }
                "--pin" => options.pin = true,
                "--busybox" => options.busybox = value()?.into(),
                "--rows" => options.rows = value()?.split(',').map(str::to_owned).collect(),
                "--budget-ms" => {
                    let value = value()?;
                    let number =
                        value.parse().map_err(|_| format!("{value} is no number of milliseconds"))?;
                    options.budget = Duration::from_millis(number);
                }
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        for part in &options.rows {
            if !crate::rows::ROWS.iter().any(|row| row.name.contains(part.as_str())) {
                return Err(format!("no row has {part} in its name; --list shows all"));
            }
        }
        Ok(Task::Measure(options))
    }

    /// Whether the row of this name is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn rows_are_chosen_by_parts_of_their_names() {
        let Ok(Task::Measure(options)) = parse("--rows fib,integer/ --budget-ms 7 --pin") else {
            panic!("it is a measurement")
        };
        assert!(options.pin && options.budget == Duration::from_millis(7));
        assert!(options.wants("calls/fib") && options.wants("integer/crc32"));
        assert!(!options.wants("memory/memcpy-1M"));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--rows no-such-row", "--budget-ms", "--budget-ms x", "more"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse("--exit"), Ok(Task::Exit));
        assert_eq!(parse("--list"), Ok(Task::List));
        assert_eq!(parse("--reset /dev/sda"), Ok(Task::Reset("/dev/sda".into())));
    }
}
