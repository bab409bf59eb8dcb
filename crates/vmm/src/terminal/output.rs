//! What a guest writes to a serial line, on its way to a file or terminal.
//!
//! A vCPU must not wait for a terminal that somebody has stopped, nor should a guest that prints faster
//! than the terminal shows lose text. So a buffer stands between them: when it is full, the writer waits
//! a while for room; when none comes, the reader counts as stuck, and until it reads again what does not
//! fit is dropped at once.

use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How much text may wait.
const BUFFER_SIZE: usize = 256 * 1024;
/// How long the thread lets text gather once some has come: a guest prints byte by byte, and to wake a thread for each
/// takes longer than the guest does to print it.
const GATHERING: Duration = Duration::from_millis(1);
/// How long a writer waits for room before the reader counts as stuck.
const PATIENCE: Duration = Duration::from_millis(500);

/// The output side of a serial line: a buffer and the thread that empties it.
#[derive(Debug)]
pub struct Output {
    shared: Arc<Shared>,
    name: String,
    /// Until the thread has it.
    file: Option<File>,
    /// What a file keeps of the past when it has grown to twice as much.
    keep: Option<u64>,
}

/// Where a device writes to.
#[derive(Clone, Debug)]
pub struct OutputWriter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something to write has come, or the end.
    work: Condvar,
    /// There is room again, or everything is written.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<u8>,
    /// The thread is writing bytes that are no longer in `waiting`.
    busy: bool,
    /// The thread sleeps until it is told of work.
    idle: bool,
    stuck: bool,
    /// The reader is gone for good.
    broken: bool,
    closed: bool,
    dropped: u64,
}

impl Output {
    /// Prepares to write to `file`. What is written waits until [`Output::start`].
    pub fn new(name: &str, file: File) -> Output {
        Output { shared: Arc::default(), name: name.to_owned(), file: Some(file), keep: None }
    }

    /// Lets the file, which must be open for reading and appending, not grow beyond twice this: when it has,
    /// only its last `bytes` are kept.
    pub fn keep_last(mut self, bytes: u64) -> Output {
        self.keep = Some(bytes);
        self
    }

    /// Starts the thread; nothing happens when it runs already.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let (shared, keep) = (self.shared.clone(), self.keep);
            std::thread::Builder::new().name(self.name.clone()).spawn(move || shared.run(file, keep))?;
        }
        Ok(())
    }

    /// A writer for a device.
    pub fn writer(&self) -> OutputWriter {
        OutputWriter { shared: self.shared.clone() }
    }

    /// Bytes lost because nobody read.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// Waits until everything is written, but not longer than `patience`, and ends the thread. What is
    /// written later is dropped.
    pub fn finish(self, patience: Duration) {
        if self.file.is_some() {
            return;
        }
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.work.notify_all();
        let unwritten = |state: &mut State| (state.busy || !state.waiting.is_empty()) && !state.broken;
        let _ = self.shared.room.wait_timeout_while(state, patience, unwritten);
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        let mut rest = bytes;
        loop {
            let (taken, left) = rest.split_at(rest.len().min(state.room()));
            state.waiting.extend(taken);
            // It takes what has come meanwhile without being told, and to tell it costs a system call.
            if std::mem::take(&mut state.idle) {
                shared.work.notify_all();
            }
            rest = left;
            if rest.is_empty() || state.stuck || state.broken || state.closed {
                break;
            }
            let full = |state: &mut State| state.room() == 0 && !state.broken && !state.closed;
            let (after, timeout) =
                shared.room.wait_timeout_while(state, PATIENCE, full).unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.stuck = timeout.timed_out();
        }
        state.dropped += rest.len() as u64;
        // What was dropped is gone: a device that tried again would only wait.
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// How much can be taken now.
    fn room(&self) -> usize {
        if self.broken || self.closed { 0 } else { BUFFER_SIZE - self.waiting.len() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut file: File, keep: Option<u64>) {
        let mut state = self.lock();
        loop {
            if state.waiting.is_empty() {
                self.room.notify_all();
                if state.closed {
                    return;
                }
                state.idle = true;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle = false;
                let more = |state: &mut State| !state.closed && state.room() > BUFFER_SIZE / 2;
                let gathered = self.work.wait_timeout_while(state, GATHERING, more);
                state = gathered.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let bytes: Vec<u8> = std::mem::take(&mut state.waiting).into();
            state.busy = true;
            state.stuck = false;
            self.room.notify_all();
            drop(state);
            let result = write_patiently(&mut file, &bytes).and_then(|()| match keep {
                Some(keep) => shorten(&file, keep),
                None => Ok(()),
            });
            state = self.lock();
            state.busy = false;
            if result.is_err() {
                // A closed pipe, a full disk: nothing will come of the rest either.
                state.broken = true;
                state.dropped += state.waiting.len() as u64;
                state.waiting.clear();
                self.room.notify_all();
                return;
            }
        }
    }
}

/// Cuts a file that is longer than twice `keep` down to its last `keep` bytes.
fn shorten(mut file: &File, keep: u64) -> io::Result<()> {
    let len = file.metadata()?.len();
    if len <= 2 * keep {
        return Ok(());
    }
    let mut last = vec![0; keep as usize];
    file.read_exact_at(&mut last, len - keep)?;
    file.set_len(0)?;
    file.write_all(&last)
}

/// Writes everything, also to a descriptor that somebody has set non-blocking.
fn write_patiently(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], None);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pipe() -> (File, File) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (File::from(reader), File::from(writer))
    }

    #[test]
    fn everything_arrives_in_order_even_when_more_than_the_buffer() {
        let (mut reader, writer) = pipe();
        let mut output = Output::new("test", writer);
        output.start().unwrap();
        let text: Vec<u8> = (0..BUFFER_SIZE * 3).map(|i| (i % 251) as u8).collect();
        let expected = text.clone();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        let mut to = output.writer();
        for chunk in text.chunks(1000) {
            to.write_all(chunk).unwrap();
        }
        assert_eq!(output.dropped(), 0);
        output.finish(Duration::from_secs(60));
        assert!(reading.join().unwrap() == expected);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_a_wait_and_then_only_text() {
        let (reader, writer) = pipe();
        let mut output = Output::new("test", writer);
        output.start().unwrap();
        let mut to = output.writer();
        // Pipe, thread and buffer hold a part; all else is dropped after one wait.
        for _ in 0..64 {
            assert_eq!(to.write(&[0; BUFFER_SIZE]).unwrap(), BUFFER_SIZE);
        }
        assert!(output.dropped() > 0);
        drop(reader);
        output.finish(Duration::from_secs(60));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (reader, writer) = pipe();
        drop(reader);
        let mut output = Output::new("test", writer);
        output.start().unwrap();
        let mut to = output.writer();
        for _ in 0..10 {
            to.write_all(&[1; BUFFER_SIZE]).unwrap();
        }
        output.finish(Duration::from_secs(60));
    }

    #[test]
    fn a_file_that_is_kept_short_ends_with_the_last_words() {
        let path = std::env::temp_dir().join(format!("arnia-kept-short-{}", std::process::id()));
        let file = File::options().read(true).append(true).create(true).open(&path).unwrap();
        let mut output = Output::new("test", file).keep_last(1000);
        output.start().unwrap();
        let mut writer = output.writer();
        for n in 0..1000 {
            writer.write_all(format!("line {n:04}\n").as_bytes()).unwrap();
        }
        output.finish(Duration::from_secs(60));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!((1000..=2000).contains(&text.len()), "{}", text.len());
        assert!(text.ends_with("line 0998\nline 0999\n"));
        std::fs::remove_file(path).unwrap();
    }
}
