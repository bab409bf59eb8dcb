//! The machine seen from outside: its console, its tests' results, and its end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::steps::{Tally, parse_test_result};

/// How it ended.
pub(super) struct Ended {
    pub(super) tally: Tally,
    /// What the script inside ended with, if it did.
    pub(super) status: Option<i32>,
}

/// A process that does not outlive its owner.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Shows what the machine prints, counts its tests, and ends it after `limit`.
pub(super) fn watch(child: Child, limit: Duration, log: &Path) -> Result<Ended> {
    let mut child = KillOnDrop(child);
    let output = child.0.stdout.take().context("the machine's console was asked for")?;
    let (sender, lines) = channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut log = File::create(log)?;
    let deadline = Instant::now() + limit;
    let mut ended = Ended { tally: Tally::default(), status: None };
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                writeln!(log, "{line}")?;
                ended.tally.add(parse_test_result(&line).unwrap_or_default());
                if let Some(status) = line.strip_prefix("ARNIA-RIG status=") {
                    ended.status = status.parse().ok();
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("the machine takes more than {} s", limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(child);
    let _ = reader.join();
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_machine_that_takes_too_long_is_ended() {
        let log = std::env::temp_dir().join(format!("arnia-rig-{}", std::process::id()));
        let sleep =
            |seconds: &str| Command::new("sleep").arg(seconds).stdout(Stdio::piped()).spawn().unwrap();
        assert!(watch(sleep("60"), Duration::from_millis(10), &log).is_err());
        let ended = watch(sleep("0"), Duration::from_secs(60), &log).unwrap();
        assert_eq!((ended.tally, ended.status), (Tally::default(), None));
        fs::remove_file(log).unwrap();
    }
}
