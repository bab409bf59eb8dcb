//! The guest's serial console: everything it prints is kept, and a test waits for what it expects.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::Patience;

/// What a kernel prints when it gives up. Waiting on is pointless then.
const PANIC: &str = "Kernel panic - not syncing";

/// More than any guest here prints; one that never stops shall not fill the host's memory.
const LENGTH_MAX: usize = 64 << 20;

/// A console: input, and all output so far.
#[derive(Debug)]
pub struct Console {
    input: ChildStdin,
    output: Arc<Output>,
    /// Up to where [`Console::expect`] has consumed the output.
    seen: usize,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

impl Console {
    /// Takes over a program's standard input and output; `log` gets a copy of the output.
    pub fn new(input: ChildStdin, output: ChildStdout, log: File) -> Self {
        let shared = Arc::new(Output::default());
        let reader = Arc::clone(&shared);
        // Ends when the program does: its end of the pipe closes.
        thread::spawn(move || reader.fill(output, log));
        Self { input, output: shared, seen: 0 }
    }

    /// Types a text.
    ///
    /// # Errors
    /// If the program has ended.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes()).context("cannot type on the console: the program has ended")?;
        Ok(self.input.flush()?)
    }

    /// Waits until `text` comes and returns what came before it since the last call.
    ///
    /// # Errors
    /// If it does not come in time, the program ends, or the guest's kernel panics.
    pub fn expect(&mut self, text: &str, patience: Patience) -> Result<String> {
        let found = self.expect_any(&[text], patience)?;
        Ok(found.before)
    }

    /// Waits for the first of several texts.
    pub(crate) fn expect_any(&mut self, texts: &[&str], patience: Patience) -> Result<Found> {
        let deadline = Instant::now() + patience.limit();
        let mut state = self.output.lock();
        loop {
            let news = &state.bytes[self.seen..];
            let hits = texts.iter().enumerate().filter_map(|(index, text)| Some((find(news, text)?, index)));
            if let Some((at, index)) = hits.min() {
                let before = String::from_utf8_lossy(&news[..at]).replace('\r', "");
                self.seen += at + texts[index].len();
                return Ok(Found { before });
            }
            let wanted = texts.join("` or `");
            if find(news, PANIC).is_some() {
                bail!("the guest's kernel panicked while `{wanted}` was awaited;{}", tail(&state.bytes));
            }
            if state.closed {
                bail!("the program ended while `{wanted}` was awaited;{}", tail(&state.bytes));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let limit = patience.limit().as_secs();
                bail!("`{wanted}` did not come within {limit} s;{}", tail(&state.bytes));
            }
            (state, _) = self.output.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Everything printed since the last call that waited, without waiting or consuming.
    pub fn unread(&self) -> String {
        let state = self.output.lock();
        String::from_utf8_lossy(&state.bytes[self.seen..]).replace('\r', "")
    }

    /// Everything printed so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().bytes).replace('\r', "")
    }
}

/// A text that came.
#[derive(Debug)]
pub(crate) struct Found {
    /// What came before it.
    pub(crate) before: String,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, mut from: ChildStdout, mut log: File) {
        let mut buffer = [0; 4096];
        loop {
            // An error here is the end just as the end is.
            let length = from.read(&mut buffer).unwrap_or(0);
            let mut state = self.lock();
            state.bytes.extend_from_slice(&buffer[..length]);
            state.closed = length == 0 || state.bytes.len() > LENGTH_MAX;
            let closed = state.closed;
            drop(state);
            self.more.notify_all();
            let _ = log.write_all(&buffer[..length]);
            if closed {
                return;
            }
        }
    }
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

/// The last lines, for a message.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    let lines: Vec<_> = text.lines().collect();
    if lines.is_empty() {
        return " it had printed nothing".to_owned();
    }
    let last = &lines[lines.len().saturating_sub(12)..];
    format!(" its last lines:\n    {}", last.join("\n    "))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::vm::KillOnDrop;

    /// A program of the host with a console around it.
    pub(crate) fn program_on_console(program: &str, arguments: &[&str]) -> (KillOnDrop, Console) {
        let mut command = Command::new(program);
        let child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = KillOnDrop(child.expect("the program starts"));
        let (input, output) = (child.0.stdin.take(), child.0.stdout.take());
        let log = File::create("/dev/null").expect("the null device");
        let console = Console::new(input.expect("piped"), output.expect("piped"), log);
        (child, console)
    }

    fn console(script: &str) -> (KillOnDrop, Console) {
        program_on_console("sh", &["-c", script])
    }

    #[test]
    fn expectations_are_met_in_order() {
        let (mut child, mut console) = console("echo one; read word; printf 'two %s\\r\\nthree' $word");
        assert_eq!(console.expect("ne\n", Patience::Host).expect("it comes"), "o");
        console.send("hello\n").expect("the shell reads");
        assert_eq!(console.expect("three", Patience::Host).expect("it comes"), "two hello\n");
        assert!(console.expect("one", Patience::Host).is_err(), "what was consumed does not come again");
        assert_eq!(console.transcript(), "one\ntwo hello\nthree");
        child.0.wait().expect("the shell ends");
    }

    #[test]
    fn the_end_and_a_panic_are_told_with_the_last_lines() {
        for (script, why) in
            [("echo last", "ended"), ("echo last; echo Kernel panic - not syncing: x; read x", PANIC)]
        {
            let (mut child, mut console) = console(script);
            let error = console.expect("never", Patience::Host).expect_err("it cannot come").to_string();
            assert!(error.contains("last") && error.contains(why), "{error}");
            drop(console);
            child.0.wait().expect("the shell ends");
        }
    }
}
