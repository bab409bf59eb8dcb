//! A machine's end of the cable to a file server.

use crate::{Key, wire};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait before the next attempt when nothing answers.
const RETRY: Duration = Duration::from_millis(100);

/// A cable to a file server. It is plugged in when it is first used, and again when the server is another one.
/// Nothing blocks.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    key: Key,
    socket: Option<OwnedFd>,
    retry: Option<Instant>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is under way.
    Yes,
    /// The server is behind: it was not sent.
    Full,
    /// Nobody is there: it was not sent.
    Gone,
}

/// What there was to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of this length.
    Message(usize),
    /// Nothing now.
    Nothing,
    /// The server is gone, and with it what it was asked.
    Gone,
}

impl Link {
    /// A cable to the server that listens at `path`.
    pub fn new(path: &Path, key: Key) -> Link {
        Link { path: path.to_owned(), key, socket: None, retry: None }
    }

    /// Plugs it in, if it is not and the last attempt was not just now. Returns whether there is a new socket, to be
    /// waited for.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn plug_in(&mut self) -> io::Result<bool> {
        if self.socket.is_some() {
            return Ok(false);
        }
        if self.retry.is_some_and(|at| Instant::now() < at) {
            return Err(Errno::AGAIN.into());
        }
        match wire::plug_in(&self.path, &self.key) {
            Ok(socket) => {
                self.retry = None;
                self.socket = Some(socket);
                Ok(true)
            }
            Err(error) => {
                self.retry = Some(Instant::now() + RETRY);
                Err(error)
            }
        }
    }

    /// The socket, while it is plugged in.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Sends a message.
    pub fn send(&mut self, message: &[u8]) -> Sent {
        let Some(socket) = &self.socket else { return Sent::Gone };
        match rustix::net::send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => Sent::Yes,
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR) => Sent::Full,
            Err(_) => {
                self.unplug();
                Sent::Gone
            }
        }
    }

    /// Receives a message. One that is longer than the room for it ends the connection.
    pub fn receive(&mut self, room: &mut [u8]) -> Received {
        let Some(socket) = &self.socket else { return Received::Nothing };
        let size = room.len();
        match rustix::net::recv(socket, room, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, len)) if (1..=size).contains(&len) => Received::Message(len),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            _ => {
                self.unplug();
                Received::Gone
            }
        }
    }

    /// Unplugs it: the server forgets everything that it knows of this machine.
    pub fn unplug(&mut self) {
        self.socket = None;
    }
}
