//! What is typed, on its way to the guest.

use super::escape::{Command, EscapeFilter};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Takes input for the guest.
pub trait CharSink: Send + Sync {
    /// Takes as many of the bytes as there is room for and returns how many. Never blocks.
    fn receive(&self, bytes: &[u8]) -> usize;
}

/// Wakes the input thread: the guest has read, there is room again.
#[derive(Clone, Debug)]
pub struct Wake {
    event: Arc<OwnedFd>,
}

impl Wake {
    /// Creates one.
    ///
    /// # Errors
    /// When the process may not open more descriptors.
    pub fn new() -> io::Result<Wake> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Wake { event: Arc::new(event) })
    }

    /// Wakes it. Never blocks.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(&self.event, PollFlags::IN)
    }

    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

/// Whether the escape key means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typist {
    Person,
    Program,
}

/// The input side of a serial line.
pub struct Input {
    source: File,
    sink: Arc<dyn CharSink>,
    wake: Wake,
    typist: Typist,
    on_command: Box<dyn Fn(Command) + Send>,
}

/// Waits this long at most for room: sinks without a wake-up are asked again then.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

impl Input {
    /// Prepares to read `source` for `sink`. `wake` is woken when the sink has room again.
    /// `on_command` takes what a person asks with the escape key, which only works when `source` is a
    /// terminal: what a program sends passes through as it is.
    pub fn new(
        source: File,
        sink: Arc<dyn CharSink>,
        wake: Wake,
        on_command: impl Fn(Command) + Send + 'static,
    ) -> Input {
        let typist = if rustix::termios::isatty(&source) { Typist::Person } else { Typist::Program };
        Input { source, sink, wake, typist, on_command: Box::new(on_command) }
    }

    /// Starts the thread, which ends at the end of the input. The machine goes on without.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(self, name: &str) -> io::Result<()> {
        std::thread::Builder::new().name(name.to_owned()).spawn(move || self.run())?;
        Ok(())
    }

    fn run(mut self) {
        let mut filter = EscapeFilter::default();
        let mut buffer = [0; 4096];
        let mut for_guest = Vec::new();
        loop {
            let count = match self.source.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(&self.source, PollFlags::IN)], None);
                    continue;
                }
                Err(_) => return,
            };
            for_guest.clear();
            match self.typist {
                Typist::Program => for_guest.extend_from_slice(&buffer[..count]),
                Typist::Person => {
                    for command in filter.filter(&buffer[..count], &mut for_guest) {
                        (self.on_command)(command);
                    }
                }
            }
            self.deliver(&for_guest, &mut filter);
        }
    }

    /// Hands over all bytes, waiting for room. A person can still reach the worker meanwhile.
    fn deliver(&mut self, mut bytes: &[u8], filter: &mut EscapeFilter) {
        loop {
            bytes = &bytes[self.sink.receive(bytes)..];
            if bytes.is_empty() {
                return;
            }
            let ready = {
                let mut fds = [PollFd::new(&self.wake.event, PollFlags::IN)].to_vec();
                if self.typist == Typist::Person {
                    fds.push(PollFd::from_borrowed_fd(self.source.as_fd(), PollFlags::IN));
                }
                let _ = poll(&mut fds, Some(&RETRY));
                fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN))
            };
            self.wake.clear();
            if ready {
                // Keys typed while the guest does not listen are lost, but for the worker's own.
                let mut buffer = [0; 256];
                let count = self.source.read(&mut buffer).unwrap_or(0);
                for command in filter.filter(&buffer[..count], &mut Vec::new()) {
                    (self.on_command)(command);
                }
                if count == 0 {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Condvar, Mutex};

    /// Takes three bytes at a time and only when it was emptied.
    #[derive(Default)]
    struct SlowGuest {
        got: Mutex<(Vec<u8>, usize)>,
        changed: Condvar,
    }

    impl CharSink for SlowGuest {
        fn receive(&self, bytes: &[u8]) -> usize {
            let mut got = self.got.lock().unwrap();
            let taken = bytes.len().min(3 - got.1);
            got.0.extend_from_slice(&bytes[..taken]);
            got.1 += taken;
            self.changed.notify_all();
            taken
        }
    }

    #[test]
    fn a_program_feeds_a_slow_guest_completely_and_unchanged() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (guest, wake) = (Arc::new(SlowGuest::default()), Wake::new().unwrap());
        let input = Input::new(reader.into(), guest.clone(), wake.clone(), |_| panic!("no escape in a pipe"));
        input.start("test").unwrap();
        let text = b"0123456789\x1dx end";
        File::from(writer).write_all(text).unwrap();
        let mut got = guest.got.lock().unwrap();
        while got.0.len() < text.len() {
            got.1 = 0;
            wake.wake();
            got = guest.changed.wait(got).unwrap();
        }
        assert_eq!(got.0, text);
    }
}
