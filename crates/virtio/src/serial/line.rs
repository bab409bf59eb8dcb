//! The host's end of a serial port: a Unix socket with one client at a time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Bytes that wait on either side at most, beyond one chain of the guest's.
const WAITING_MAX: usize = 64 << 10;

/// The socket, its client, and what is on its way.
pub(super) struct Line {
    listener: UnixListener,
    client: Option<UnixStream>,
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
}

impl Line {
    /// Listens at `path`. A socket there that nobody listens at any more is replaced.
    pub(super) fn listen(path: &Path) -> io::Result<Line> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }?;
        listener.set_nonblocking(true)?;
        Ok(Line { listener, client: None, to_guest: VecDeque::new(), to_host: VecDeque::new() })
    }

    /// Takes a client that waits, and moves bytes as far as they go. Never blocks. Returns whether something moved.
    pub(super) fn work(&mut self) -> bool {
        let mut did = false;
        if self.client.is_none()
            && let Ok((client, _)) = self.listener.accept()
            && client.set_nonblocking(true).is_ok()
        {
            self.client = Some(client);
            did = true;
        }
        let Some(client) = &mut self.client else { return did };
        while !self.to_host.is_empty() {
            match client.write(self.to_host.as_slices().0) {
                Ok(len) => drop(self.to_host.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.hang_up();
                    return true;
                }
            }
            did = true;
        }
        let mut piece = [0; 4096];
        while self.to_guest.len() < WAITING_MAX {
            let Some(client) = &mut self.client else { break };
            match client.read(&mut piece) {
                Ok(0) => self.hang_up(),
                Ok(len) => self.to_guest.extend(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.hang_up(),
            }
            did = true;
        }
        did
    }

    /// Ends the connection; what was on its way is lost.
    pub(super) fn hang_up(&mut self) {
        self.client = None;
        self.to_guest.clear();
        self.to_host.clear();
    }

    /// Whether more of the guest's bytes are taken now.
    pub(super) fn takes_output(&self) -> bool {
        self.to_host.len() < WAITING_MAX
    }

    /// Takes bytes of the guest.
    pub(super) fn output(&mut self, bytes: &[u8]) {
        if self.client.is_some() {
            self.to_host.extend(bytes);
        }
    }

    pub(super) fn has_input(&self) -> bool {
        !self.to_guest.is_empty()
    }

    /// Moves bytes for the guest into `buffer`; returns how many.
    pub(super) fn input(&mut self, buffer: &mut [u8]) -> usize {
        let len = buffer.len().min(self.to_guest.len());
        for (to, from) in buffer.iter_mut().zip(self.to_guest.drain(..len)) {
            *to = from;
        }
        len
    }

    /// Descriptors to wait for: readable, and writable.
    pub(super) fn waits(&self) -> (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>) {
        match &self.client {
            None => (Some(self.listener.as_fd()), None),
            Some(client) => (
                (self.to_guest.len() < WAITING_MAX).then(|| client.as_fd()),
                (!self.to_host.is_empty()).then(|| client.as_fd()),
            ),
        }
    }
}
