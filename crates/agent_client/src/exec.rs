//! A program that runs in a guest.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use api::agent::frame::{CHUNK_LEN, FrameKind};
use api::agent::{Control, Event, Exit, STDIN_WINDOW, WindowSize};

use crate::connection::Connection;
use crate::error::Error;

/// A program that runs in a guest. Dropping it (both halves, if it was split) hangs up on the program.
#[derive(Debug)]
pub struct Exec {
    input: ExecInput,
    output: ExecOutput,
}

/// What goes to the program. Usable from any one thread, whatever the other half does.
#[derive(Debug)]
pub struct ExecInput {
    connection: Connection,
    window: Arc<Window>,
}

/// What comes from the program. Somebody has to take it: see [`ExecOutput::next_event`].
#[derive(Debug)]
pub struct ExecOutput {
    connection: Connection,
    window: Arc<Window>,
    ended: bool,
}

/// Something that a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote on its standard output or its terminal.
    Stdout(Vec<u8>),
    /// It wrote on its standard error.
    Stderr(Vec<u8>),
    /// It ended. Nothing follows.
    Exited(Exit),
}

/// How much input may be sent.
#[derive(Debug)]
struct Window {
    /// Bytes, or nothing once the program takes no more.
    open: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Window {
    fn change(&self, change: impl FnOnce(&mut Option<usize>)) {
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits for room and takes up to `wanted` bytes of it; nothing if there will be none.
    fn take(&self, wanted: usize) -> Option<usize> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(open, |open| *open == Some(0));
        let mut open = waited.unwrap_or_else(PoisonError::into_inner);
        let room = open.as_mut()?;
        let taken = wanted.min(*room);
        *room -= taken;
        Some(taken)
    }
}

impl Exec {
    pub(crate) fn new(mut connection: Connection) -> Result<Exec, Error> {
        let error = |error| Error::io("cannot use the connection to the agent", error);
        // A program may be silent for as long as it likes.
        connection.unlimit().map_err(error)?;
        let other = connection.try_clone().map_err(error)?;
        let window = Arc::new(Window { open: Mutex::new(Some(STDIN_WINDOW)), changed: Condvar::new() });
        let input = ExecInput { connection: other, window: Arc::clone(&window) };
        Ok(Exec { input, output: ExecOutput { connection, window, ended: false } })
    }

    /// It must have ended within `limit`; then, input and output fail with [`ErrorKind::TimedOut`].
    ///
    /// [`ErrorKind::TimedOut`]: crate::ErrorKind::TimedOut
    pub fn end_within(&mut self, limit: Duration) {
        self.input.connection.end_within(limit);
        self.output.connection.end_within(limit);
    }

    /// Splits it, so that two threads can serve it.
    pub fn split(self) -> (ExecInput, ExecOutput) {
        (self.input, self.output)
    }
}

impl ExecInput {
    /// Sends input. Waits while the program does not read; needs somebody who takes the events meanwhile.
    ///
    /// # Errors
    /// If the program has ended or the connection broke.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let Some(count) = self.window.take(bytes.len().min(CHUNK_LEN)) else {
                let gone = std::io::ErrorKind::BrokenPipe.into();
                return Err(Error::io("the program takes no more input", gone));
            };
            self.connection.send(FrameKind::Stdin, &bytes[..count])?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Tells that there is no more input.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn close(&mut self) -> Result<(), Error> {
        self.connection.send(FrameKind::Stdin, &[])
    }

    /// Gives its terminal another size.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn resize(&mut self, size: WindowSize) -> Result<(), Error> {
        self.control(&Control::Resize(size))
    }

    /// Sends it and its group a signal, by number.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn signal(&mut self, signal: i32) -> Result<(), Error> {
        self.control(&Control::Signal { signal })
    }

    /// Hangs up on the program, from any thread: its group gets SIGHUP.
    pub fn hang_up(&self) {
        self.connection.hang_up();
    }

    fn control(&mut self, control: &Control) -> Result<(), Error> {
        let bytes = serde_json::to_vec(control)
            .map_err(|error| Error::protocol(format!("the request cannot be written: {error}")))?;
        self.connection.send(FrameKind::Control, &bytes)
    }
}

impl ExecOutput {
    /// Waits for what the program does next. Must be called again and again until it says
    /// [`ExecEvent::Exited`]: a program whose output nobody takes has to wait.
    ///
    /// # Errors
    /// If the connection broke, or the program has ended before.
    pub fn next_event(&mut self) -> Result<ExecEvent, Error> {
        if self.ended {
            return Err(Error::protocol("the program has ended"));
        }
        let result = self.take();
        if !matches!(result, Ok(ExecEvent::Stdout(_) | ExecEvent::Stderr(_))) {
            self.ended = true;
            self.window.change(|open| *open = None);
        }
        if result.is_err() {
            // Nothing more comes of it; and whoever sends input must not wait until it is taken.
            self.connection.hang_up();
        }
        result
    }

    fn take(&mut self) -> Result<ExecEvent, Error> {
        loop {
            let frame = self.connection.receive()?;
            match frame.kind {
                FrameKind::Stdout => return Ok(ExecEvent::Stdout(frame.payload)),
                FrameKind::Stderr => return Ok(ExecEvent::Stderr(frame.payload)),
                FrameKind::Event => match serde_json::from_slice(&frame.payload) {
                    Ok(Event::Exited(exit)) => return Ok(ExecEvent::Exited(exit)),
                    Ok(Event::InputTaken { bytes }) => self.open_window(bytes)?,
                    Err(error) => {
                        return Err(Error::protocol(format!("the agent's event cannot be read: {error}")));
                    }
                },
                other => {
                    return Err(Error::protocol(format!("the agent sent {other:?} while a program runs")));
                }
            }
        }
    }

    fn open_window(&self, bytes: u64) -> Result<(), Error> {
        let mut good = true;
        self.window.change(|open| {
            let Some(room) = open else { return };
            match usize::try_from(bytes).ok().and_then(|bytes| room.checked_add(bytes)) {
                Some(more) if more <= STDIN_WINDOW => *room = more,
                _ => good = false,
            }
        });
        if good { Ok(()) } else { Err(Error::protocol("the agent took more input than there was")) }
    }
}

impl Drop for ExecOutput {
    fn drop(&mut self) {
        // Whoever waits for room, or for the agent to take input, must not wait for ever.
        self.window.change(|open| *open = None);
        self.connection.hang_up();
    }
}
