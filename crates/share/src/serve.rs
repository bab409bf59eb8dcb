//! The process of a share: a socket, and threads that answer.

use crate::wire::{HELLO_LEN, is_hello, widen};
use crate::{Folder, Key, Limits, MESSAGE_MAX, Session};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Threads that answer one machine.
const THREADS: usize = 4;
/// Connections at a time: the machine whose share it is begins anew whenever its guest does, while earlier connections
/// are still being given up.
const MACHINES_MAX: usize = 4;
/// How long a machine may take to show its key.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves a folder to the machine that knows the key.
pub struct Server {
    listener: OwnedFd,
    key: Key,
    share: u32,
    folder: Arc<Folder>,
    limits: Limits,
    machines: Arc<AtomicUsize>,
}

impl Server {
    /// Serves a folder as the share of this number, to those who come by `listener`.
    pub fn new(listener: OwnedFd, key: Key, share: u32, folder: Folder, limits: Limits) -> Server {
        // Each machine has its own.
        let part = |limit: usize| (limit / MACHINES_MAX).max(1);
        let limits = Limits { open_nodes: part(limits.open_nodes), handles: part(limits.handles), ..limits };
        Server { listener, key, share, folder: Arc::new(folder), limits, machines: Arc::default() }
    }

    /// Serves until nobody has come for `linger`.
    ///
    /// # Errors
    /// When the host refuses sockets or threads.
    pub fn run(&self, linger: Duration) -> io::Result<()> {
        /// How often it looks whether somebody is there.
        const TURN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut needed = Instant::now();
        while needed.elapsed() < linger {
            match poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&TURN)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => self.let_in()?,
                Err(error) => return Err(error.into()),
            }
            if self.machines.load(Ordering::Acquire) > 0 {
                needed = Instant::now();
            }
        }
        Ok(())
    }

    /// Takes a connection, if it shows the key.
    fn let_in(&self) -> io::Result<()> {
        let socket = match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            // It has gone again, or there are no descriptors just now.
            Err(_) => return Ok(()),
        };
        widen(&socket);
        let wait = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut hello = [0; HELLO_LEN + 1];
        let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&wait));
        let shown = match rustix::net::recv(&socket, &mut hello, RecvFlags::DONTWAIT) {
            Ok((_, len)) => len,
            Err(_) => 0,
        };
        let is_full = self.machines.load(Ordering::Acquire) >= MACHINES_MAX;
        if is_full || !is_hello(&hello[..shown.min(hello.len())], &self.key) {
            return Ok(());
        }
        let session = Arc::new(Session::new(self.folder.clone(), self.share, self.limits)?);
        let connection = Arc::new(Connection { socket, session, machines: self.machines.clone() });
        self.machines.fetch_add(1, Ordering::AcqRel);
        for _ in 0..THREADS {
            let connection = connection.clone();
            Builder::new().name("answers".into()).spawn(move || connection.answer())?;
        }
        Ok(())
    }
}

/// A machine that is plugged in.
struct Connection {
    socket: OwnedFd,
    session: Arc<Session>,
    machines: Arc<AtomicUsize>,
}

impl Connection {
    /// Answers requests until the machine is gone. Several threads do so: a packet is received and sent as a whole.
    fn answer(&self) {
        let mut request = vec![0; MESSAGE_MAX];
        let mut answer = Vec::with_capacity(MESSAGE_MAX);
        loop {
            match rustix::net::recv(&self.socket, &mut request[..], RecvFlags::TRUNC) {
                Ok((_, len)) if (1..=request.len()).contains(&len) => {
                    if self.session.answer(&request[..len], &mut answer)
                        && !send_whole(self.socket.as_fd(), &answer)
                    {
                        return self.hang_up();
                    }
                }
                Err(Errno::INTR) => {}
                _ => return self.hang_up(),
            }
        }
    }

    /// Wakes the other threads, too.
    fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.machines.fetch_sub(1, Ordering::AcqRel);
    }
}

fn send_whole(socket: impl AsFd, message: &[u8]) -> bool {
    loop {
        match rustix::net::send(&socket, message, SendFlags::NOSIGNAL) {
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
