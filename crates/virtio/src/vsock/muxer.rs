//! All streams between one guest and the host's unix sockets. No queue and no thread: packets in,
//! packets out, and a descriptor to wait for.
//!
//! A guest that connects to port N of the host is connected to the socket `<path>_<N>`. A program on the
//! host that wants a port of the guest connects to `<path>` and writes `CONNECT <port>\n`; when the guest
//! accepts it reads `OK <host port>\n`, and from then on the stream is the guest's; when the guest
//! refuses, the socket is closed. (Other VMMs do the same, so their clients serve.)
//!
//! **Bounds**: so many connections, so many programs that have not said what they want, per connection
//! the credit in [`super::credit`], and a list of answers to packets that belong to no connection, which
//! when full stops the intake of packets until the guest has taken answers (§5.10.6.4).

use super::connection::{Connection, Outcome, Phase};
use super::packet::Header;
use super::spec::{HOST_CID, TYPE_STREAM, op};
use crate::{Error, ErrorKind};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Streams at a time.
const CONNECTIONS_MAX: usize = 1024;
/// Programs on the host that have connected but not said to what.
const GREETINGS_MAX: usize = 64;
/// `CONNECT 4294967295\n` and some.
const GREETING_LEN_MAX: usize = 32;
/// Answers that wait for the guest.
const ANSWERS_MAX: usize = 256;
/// How long an unanswered greeting, request or shutdown may stand.
const PATIENCE: Duration = Duration::from_secs(8);
/// The host's ports for connections that it begins: what no service uses.
const HOST_PORT_FIRST: u32 = 1 << 30;
/// How long to leave the listening socket alone when the host is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const LISTENER: u64 = 0;

/// The streams of one guest.
pub(crate) struct Muxer {
    cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: OwnedFd,
    next_id: u64,
    next_host_port: u32,
    connections: HashMap<u64, Connection>,
    /// By guest's port and host's port.
    ids: HashMap<(u32, u32), u64>,
    greetings: HashMap<u64, Greeting>,
    /// Connections that have something for the guest.
    ready: VecDeque<u64>,
    answers: VecDeque<Header>,
    /// When to look whether an id has been answered; in order, since the patience is always the same.
    timeouts: VecDeque<(Instant, u64)>,
    accept_again: Option<Instant>,
}

struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Muxer {
    /// Listens at `path`. A socket there that nobody listens at any more is replaced.
    pub(crate) fn new(cid: u64, path: &Path) -> Result<Muxer, Error> {
        let listener = listen(path)?;
        let failed = |error: io::Error| {
            let context = format!("cannot listen at {}", path.display());
            Error::new(ErrorKind::HostRefused, context).with_source(error)
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let token = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, token, epoll::EventFlags::IN).map_err(|e| failed(e.into()))?;
        Ok(Muxer {
            cid,
            path: path.to_owned(),
            listener,
            epoll,
            next_id: LISTENER + 1,
            next_host_port: HOST_PORT_FIRST,
            connections: HashMap::new(),
            ids: HashMap::new(),
            greetings: HashMap::new(),
            ready: VecDeque::new(),
            answers: VecDeque::new(),
            timeouts: VecDeque::new(),
            accept_again: None,
        })
    }

    /// Drops all streams.
    pub(crate) fn reset(&mut self) {
        self.connections.clear();
        self.ids.clear();
        self.ready.clear();
        self.answers.clear();
    }

    /// Readable when [`Muxer::poll`] has something to do.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When [`Muxer::poll`] is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let first = self.timeouts.front().map(|(when, _)| *when);
        [first, self.accept_again].into_iter().flatten().min()
    }

    /// The number of streams.
    #[cfg(test)]
    pub(crate) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Whether packets from the guest are taken now.
    pub(crate) fn takes_packets(&self) -> bool {
        self.answers.len() < ANSWERS_MAX
    }

    /// Whether there is, or may be, a packet for the guest.
    pub(crate) fn has_packet(&self) -> bool {
        !self.answers.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet from the guest. Call only while [`Muxer::takes_packets`].
    pub(crate) fn take_packet(&mut self, header: &Header, payload: &[u8]) {
        let key = (header.src_port, header.dst_port);
        if header.src_cid != self.cid || header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        match (self.ids.get(&key).copied(), header.op) {
            (None, op::REQUEST) => self.connect_to_host(header),
            (None, _) => self.refuse(header),
            (Some(id), _) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let outcome = connection.packet_from_guest(header, payload);
                self.settle(id, outcome);
            }
        }
    }

    /// Answers with a reset, unless that is what it was (§5.10.6.4).
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.answers.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    fn connect_to_host(&mut self, request: &Header) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", request.dst_port));
        let stream = (self.connections.len() < CONNECTIONS_MAX).then(|| connect(Path::new(&path)));
        let Some(Ok(stream)) = stream else { return self.refuse(request) };
        let connection = Connection::from_guest(request, stream);
        if self.insert(connection).is_none() {
            self.refuse(request);
        }
    }

    /// Adds a connection and watches its socket.
    fn insert(&mut self, connection: Connection) -> Option<u64> {
        let id = self.new_id();
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &connection.stream, epoll::EventData::new_u64(id), flags).ok()?;
        self.ids.insert((connection.guest_port, connection.host_port), id);
        self.connections.insert(id, connection);
        self.settle(id, Outcome::Alive);
        Some(id)
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Draws the conclusion from an event of a connection.
    fn settle(&mut self, id: u64, outcome: Outcome) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match outcome {
            Outcome::Alive => {
                if connection.has_outgoing() && !connection.queued {
                    connection.queued = true;
                    self.ready.push_back(id);
                }
            }
            Outcome::Gone => drop(self.remove(id)),
            Outcome::Reset => {
                if let Some(connection) = self.remove(id) {
                    self.answers.push_back(Header {
                        src_cid: HOST_CID,
                        dst_cid: self.cid,
                        src_port: connection.host_port,
                        dst_port: connection.guest_port,
                        kind: TYPE_STREAM,
                        op: op::RST,
                        ..Header::default()
                    });
                }
            }
        }
    }

    /// Removes a connection; closing its socket ends the watch on it.
    fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.ids.remove(&(connection.guest_port, connection.host_port));
        if connection.queued {
            self.ready.retain(|ready| *ready != id);
        }
        Some(connection)
    }

    /// The next packet for the guest: its header, with `len` bytes of data in `buffer`.
    pub(crate) fn next_packet(&mut self, buffer: &mut [u8]) -> Option<Header> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            let id = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let outgoing = match connection.next_outgoing(buffer) {
                Ok(Some(outgoing)) => outgoing,
                Ok(None) => {
                    self.settle(id, Outcome::Alive);
                    continue;
                }
                Err(outcome) => {
                    self.settle(id, outcome);
                    continue;
                }
            };
            let (buf_alloc, fwd_cnt) = connection.tell_credit();
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: connection.host_port,
                dst_port: connection.guest_port,
                len: outgoing.len as u32,
                kind: TYPE_STREAM,
                op: outgoing.op,
                flags: outgoing.flags,
                buf_alloc,
                fwd_cnt,
            };
            if outgoing.op == op::REQUEST || outgoing.op == op::SHUTDOWN && connection.is_closing() {
                self.timeouts.push_back((Instant::now() + PATIENCE, id));
            }
            self.settle(id, Outcome::Alive);
            return Some(header);
        }
    }

    /// Looks after sockets and timeouts; whether there was anything.
    pub(crate) fn poll(&mut self) -> bool {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: NO_DATA }; 64];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.epoll, &mut events[..], Some(&now)).unwrap_or(0);
        for event in &events[..count] {
            // Copies: the structure is packed.
            let (flags, id) = (event.flags, event.data.u64());
            if id == LISTENER {
                self.accept();
            } else if self.greetings.contains_key(&id) {
                self.greet(id);
            } else if let Some(connection) = self.connections.get_mut(&id) {
                let any = |which: epoll::EventFlags| flags.intersects(which);
                let gone = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
                let outcome = connection.socket_event(
                    any(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | gone),
                    any(epoll::EventFlags::OUT | gone),
                    any(gone),
                );
                self.settle(id, outcome);
            }
        }
        self.expire(Instant::now());
        count > 0
    }

    fn expire(&mut self, now: Instant) {
        // Also those whose id is gone are dropped, so that the list does not outgrow what it is about.
        while let Some((when, id)) = self.timeouts.front().copied() {
            let is_live = self.connections.contains_key(&id) || self.greetings.contains_key(&id);
            if is_live && when > now {
                break;
            }
            self.timeouts.pop_front();
            if when > now {
                continue;
            }
            self.greetings.remove(&id);
            let overdue = |c: &Connection| c.phase == Phase::Requested || c.is_closing();
            if self.connections.get(&id).is_some_and(overdue) {
                self.settle(id, Outcome::Reset);
            }
        }
        if self.accept_again.is_some_and(|when| when <= now) {
            self.accept_again = None;
            let token = epoll::EventData::new_u64(LISTENER);
            if epoll::add(&self.epoll, &self.listener, token, epoll::EventFlags::IN).is_err() {
                self.accept_again = Some(now + ACCEPT_PAUSE);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..GREETINGS_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => self.accepted(stream),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Out of descriptors: the socket would stay readable and keep us awake.
                        let _ = epoll::delete(&self.epoll, &self.listener);
                        self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    fn accepted(&mut self, stream: UnixStream) {
        // One too many is closed at once.
        if self.greetings.len() >= GREETINGS_MAX || self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let id = self.new_id();
        let token = epoll::EventData::new_u64(id);
        if epoll::add(&self.epoll, &stream, token, epoll::EventFlags::IN).is_err() {
            return;
        }
        self.greetings.insert(id, Greeting { stream, line: Vec::new() });
        self.timeouts.push_back((Instant::now() + PATIENCE, id));
        self.greet(id);
    }

    /// Reads on in what a program on the host wants; when it has said it, asks the guest.
    fn greet(&mut self, id: u64) {
        let Some(greeting) = self.greetings.get_mut(&id) else { return };
        // Byte by byte: what follows the line is the guest's.
        let port = loop {
            let mut byte = [0];
            match rustix::io::read(&greeting.stream, &mut byte[..]) {
                Ok(1) if byte == *b"\n" => break parse_greeting(&greeting.line),
                Ok(1) if greeting.line.len() < GREETING_LEN_MAX => greeting.line.push(byte[0]),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                _ => break None,
            }
        };
        let Some(Greeting { stream, .. }) = self.greetings.remove(&id) else { return };
        let _ = epoll::delete(&self.epoll, &stream);
        let Some(guest_port) = port else { return };
        let host_port = self.free_host_port(guest_port);
        self.insert(Connection::from_host(guest_port, host_port, stream));
    }

    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = port.checked_add(1).filter(|p| *p != u32::MAX).unwrap_or(HOST_PORT_FIRST);
            // There are many more ports than connections, so this ends.
            if !self.ids.contains_key(&(guest_port, port)) {
                return port;
            }
        }
    }
}

/// A placeholder for events to be filled in.
const NO_DATA: epoll::EventData = epoll::EventData::new_u64(0);

impl Drop for Muxer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The port in `CONNECT <port>`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    let (word, port) = line.split_once(' ')?;
    word.eq_ignore_ascii_case("connect").then(|| port.trim().parse().ok())?
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A unix socket connects at once or, with too many waiting to be accepted, not at all.
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

fn listen(path: &Path) -> Result<UnixListener, Error> {
    let error = match UnixListener::bind(path) {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let failed = |kind, what: &str, source| {
        let context = format!("cannot listen at {}: {what}", path.display());
        Err(Error::new(kind, context).with_source(source))
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => match connect(path).map_err(|error| error.raw_os_error()) {
            // What a program that ended without cleaning up leaves behind.
            Err(Some(libc::ECONNREFUSED)) => {
                match std::fs::remove_file(path).and_then(|()| UnixListener::bind(path)) {
                    Ok(listener) => Ok(listener),
                    Err(error) => failed(ErrorKind::HostRefused, "the old socket there stays", error),
                }
            }
            _ => failed(ErrorKind::AddressInUse, "another program does; choose another path", error),
        },
        io::ErrorKind::InvalidInput => {
            failed(ErrorKind::BadAddress, "the path is too long for a socket", error)
        }
        io::ErrorKind::NotFound => failed(ErrorKind::BadAddress, "there is no such directory", error),
        _ => failed(ErrorKind::HostRefused, "the host refuses", error),
    }
}
