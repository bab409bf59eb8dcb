//! Moving a program's streams.
//!
//! ```text
//!   host ── Stdin ──> queue (at most a window) ──> program ── Stdout, Stderr ──> host
//!        ── Control ──> size, signal
//! ```
//!
//! One thread waits for all of them. It never waits for the program to read; it may wait for the host to
//! read, because then the program has to wait too.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use api::agent::frame::{Frame, FrameKind};
use api::agent::{Control, Event, Exit, STDIN_WINDOW};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::child::Child;
use crate::session::Connection;

/// Bytes read of a program's output at once.
const READ_LEN: usize = 32 * 1024;
/// How long a terminal may take to hand over the last output after its program has ended.
const TERMINAL_DRAIN_MS: u16 = 500;
/// End of transmission: what a terminal takes for the end of its input.
const EOT: u8 = 4;

pub(crate) struct Pump<'a> {
    connection: &'a mut Connection,
    child: Child,
    /// Input that has come and not been taken.
    queue: VecDeque<u8>,
    /// How much of it the host sent. A terminal's end of input is the agent's own.
    unacknowledged: usize,
    /// Whether the host has sent the last of it.
    input_ended: bool,
    buffer: Vec<u8>,
}

/// What there is to do now.
#[derive(Default)]
struct Ready {
    host: bool,
    ended: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Stdout,
    Stderr,
}

impl<'a> Pump<'a> {
    pub(crate) fn new(connection: &'a mut Connection, child: Child) -> Pump<'a> {
        Pump {
            connection,
            child,
            queue: VecDeque::new(),
            unacknowledged: 0,
            input_ended: false,
            buffer: vec![0; READ_LEN],
        }
    }

    /// Moves until the program has ended and all that it wrote is sent.
    pub(crate) fn run(mut self) -> io::Result<Exit> {
        loop {
            // What came together with the request, or in one piece with other frames.
            while let Some(frame) = self.connection.received()? {
                self.take(&frame)?;
            }
            let ready = self.wait(PollTimeout::NONE)?;
            if ready.host && !self.connection.fill()? {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the host hung up on a program",
                ));
            }
            if ready.stdin {
                self.write_input()?;
            }
            self.move_output(&ready)?;
            if ready.ended {
                self.drain()?;
                return self.child.reap();
            }
        }
    }

    fn wait(&self, timeout: PollTimeout) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::new(self.connection.file.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.child.ended.as_fd(), PollFlags::POLLIN),
        ];
        let mut places = [None; 3];
        let wanted = [
            (self.child.stdin.as_ref().filter(|_| !self.queue.is_empty()), PollFlags::POLLOUT),
            (self.child.stdout.as_ref(), PollFlags::POLLIN),
            (self.child.stderr.as_ref(), PollFlags::POLLIN),
        ];
        for (place, (file, flags)) in places.iter_mut().zip(wanted) {
            if let Some(file) = file {
                *place = Some(fds.len());
                fds.push(PollFd::new(file.as_fd(), flags));
            }
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |index: usize| fds[index].any().unwrap_or(true);
        let [stdin, stdout, stderr] = places.map(|place| place.is_some_and(is_ready));
        Ok(Ready { host: is_ready(0), ended: is_ready(1), stdin, stdout, stderr })
    }

    fn take(&mut self, frame: &Frame) -> io::Result<()> {
        let broken = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidData, text.to_owned()));
        match frame.kind {
            FrameKind::Stdin if frame.payload.is_empty() => {
                self.input_ended = true;
                if self.child.has_terminal() {
                    self.queue.push_back(EOT);
                } else if self.queue.is_empty() {
                    self.child.stdin = None;
                }
            }
            FrameKind::Stdin => {
                if self.input_ended || self.queue.len() + frame.payload.len() > STDIN_WINDOW {
                    return broken("input beyond its end or its window");
                }
                self.unacknowledged += frame.payload.len();
                if self.child.stdin.is_some() {
                    self.queue.extend(&frame.payload);
                } else {
                    // The program reads no more; the host need not know.
                    self.acknowledge(frame.payload.len())?;
                }
            }
            FrameKind::Control => match serde_json::from_slice(&frame.payload) {
                Ok(Control::Resize(size)) => self.child.resize(size),
                Ok(Control::Signal { signal }) => self.child.signal(signal),
                Err(_) => return broken("an unknown control frame"),
            },
            _ => return broken("this is not the time for such a frame"),
        }
        Ok(())
    }

    fn write_input(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.child.stdin else { return Ok(()) };
        let taken = match stdin.write(self.queue.as_slices().0) {
            Ok(count) => {
                self.queue.drain(..count);
                count
            }
            Err(error) if is_for_later(&error) => return Ok(()),
            // It has closed its end: what is left is nobody's.
            Err(_) => {
                self.child.stdin = None;
                std::mem::take(&mut self.queue).len()
            }
        };
        if self.queue.is_empty() && self.input_ended && !self.child.has_terminal() {
            self.child.stdin = None;
        }
        self.acknowledge(taken)
    }

    fn acknowledge(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = bytes.min(self.unacknowledged);
        if bytes == 0 {
            return Ok(());
        }
        self.unacknowledged -= bytes;
        let event = Event::InputTaken { bytes: bytes as u64 };
        self.connection.send(FrameKind::Event, &serde_json::to_vec(&event)?)
    }

    fn move_output(&mut self, ready: &Ready) -> io::Result<bool> {
        let mut moved = false;
        if ready.stdout {
            moved |= self.read_output(Output::Stdout)?;
        }
        if ready.stderr {
            moved |= self.read_output(Output::Stderr)?;
        }
        Ok(moved)
    }

    /// Sends some of the output; false if there is none now.
    fn read_output(&mut self, output: Output) -> io::Result<bool> {
        let (file, kind) = match output {
            Output::Stdout => (&mut self.child.stdout, FrameKind::Stdout),
            Output::Stderr => (&mut self.child.stderr, FrameKind::Stderr),
        };
        let Some(open) = file else { return Ok(false) };
        match File::read(open, &mut self.buffer) {
            Err(error) if is_for_later(&error) => Ok(false),
            // A terminal whose last user is gone gives an error instead of an end.
            Ok(0) | Err(_) => {
                *file = None;
                Ok(false)
            }
            Ok(count) => {
                self.connection.send(kind, &self.buffer[..count])?;
                Ok(true)
            }
        }
    }

    /// Sends what the program wrote before it ended. Others that it left behind may still hold its output
    /// open; for those nobody waits.
    fn drain(&mut self) -> io::Result<()> {
        // The terminal hands its output over by and by, and then says that it is closed.
        while self.child.has_terminal() && self.child.stdout.is_some() {
            let Some(stdout) = &self.child.stdout else { break };
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(TERMINAL_DRAIN_MS)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.read_output(Output::Stdout)?;
        }
        while self.read_output(Output::Stdout)? {}
        while self.read_output(Output::Stderr)? {}
        Ok(())
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
