//! One stream between a guest's port and a unix socket of the host.

use super::credit::Credit;
use super::packet::Header;
use super::spec::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A program on the host asked for it; the guest has not answered.
    Requested,
    /// Data flows.
    Established,
}

/// One stream.
///
/// Towards the guest nothing is buffered: data stays in the socket until guest and credit have room.
/// Towards the host there is a buffer of the size that the guest was given credit for.
pub(crate) struct Connection {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
    pub(crate) stream: UnixStream,
    pub(crate) phase: Phase,
    /// Whether it stands in the list of those that have something for the guest.
    pub(crate) queued: bool,
    credit: Credit,
    to_host: VecDeque<u8>,
    /// Packets without data that are due.
    due: Due,
    /// The socket may have something to read (edge-triggered readiness).
    readable: bool,
    /// The socket's other side is wholly closed.
    hung_up: bool,
    /// No more comes from the host; and the guest was told so.
    host_done: bool,
    /// What the guest has shut down of its own, and what of ours it was told is.
    guest_shut: u32,
    host_shut: u32,
    credit_asked: bool,
}

#[derive(Default)]
struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
    shutdown: bool,
}

/// What came of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It lives on.
    Alive,
    /// It is over, and the guest is to be told by a reset.
    Reset,
    /// It is over; the guest said so itself.
    Gone,
}

/// A packet for the guest, without addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) len: usize,
}

impl Connection {
    /// A connection that a guest asked for, with a socket that accepted it.
    pub(crate) fn from_guest(request: &Header, stream: UnixStream) -> Connection {
        let mut connection = Connection::new(request.src_port, request.dst_port, stream, Phase::Established);
        connection.credit.learn(request.buf_alloc, request.fwd_cnt);
        connection.due.response = true;
        connection
    }

    /// A connection that a program on the host asked for.
    pub(crate) fn from_host(guest_port: u32, host_port: u32, stream: UnixStream) -> Connection {
        let mut connection = Connection::new(guest_port, host_port, stream, Phase::Requested);
        connection.due.request = true;
        connection
    }

    fn new(guest_port: u32, host_port: u32, stream: UnixStream, phase: Phase) -> Connection {
        Connection {
            guest_port,
            host_port,
            stream,
            phase,
            queued: false,
            credit: Credit::default(),
            to_host: VecDeque::new(),
            due: Due::default(),
            readable: true,
            hung_up: false,
            host_done: false,
            guest_shut: 0,
            host_shut: 0,
            credit_asked: false,
        }
    }

    /// Whether the guest was told that nothing will be sent or received any more, and has not answered.
    pub(crate) fn is_closing(&self) -> bool {
        self.host_shut == SHUTDOWN_BOTH
    }

    /// Takes a packet from the guest.
    pub(crate) fn packet_from_guest(&mut self, header: &Header, payload: &[u8]) -> Outcome {
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        if self.credit.available() > 0 {
            self.credit_asked = false;
        }
        match (header.op, self.phase) {
            (op::RST, _) => {
                // What the guest sent before it gave up may still be of use.
                let _ = self.flush();
                Outcome::Gone
            }
            (op::RESPONSE, Phase::Requested) => {
                self.phase = Phase::Established;
                // A fresh socket has room for this line, or its owner is not interested.
                let line = format!("OK {}\n", self.host_port);
                match send(&self.stream, line.as_bytes(), SendFlags::NOSIGNAL) {
                    Ok(len) if len == line.len() => Outcome::Alive,
                    _ => Outcome::Reset,
                }
            }
            (op::RW, Phase::Established) => self.take(payload),
            (op::CREDIT_UPDATE, Phase::Established) => Outcome::Alive,
            (op::CREDIT_REQUEST, Phase::Established) => {
                self.due.credit_update = true;
                Outcome::Alive
            }
            (op::SHUTDOWN, Phase::Established) => {
                self.guest_shut |= header.flags & SHUTDOWN_BOTH;
                if self.guest_shut & SHUTDOWN_RECEIVE != 0 {
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                self.note_hang_up();
                self.flush()
            }
            _ => Outcome::Reset,
        }
    }

    fn take(&mut self, payload: &[u8]) -> Outcome {
        if self.guest_shut & SHUTDOWN_SEND != 0 || !self.credit.received(payload.len() as u32) {
            return Outcome::Reset;
        }
        let mut written = 0;
        while self.to_host.is_empty() && written < payload.len() {
            match send(&self.stream, &payload[written..], SendFlags::NOSIGNAL) {
                Ok(len) => written += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.host_is_deaf(payload.len()),
            }
        }
        self.credit.forwarded(written as u32);
        self.to_host.extend(&payload[written..]);
        Outcome::Alive
    }

    /// The host will not read any more. What was sent to it is lost; the guest is told, but what the
    /// host has sent may still be on its way to the guest.
    fn host_is_deaf(&mut self, lost: usize) -> Outcome {
        self.credit.forwarded((lost + self.to_host.len()) as u32);
        self.to_host.clear();
        if self.host_shut & SHUTDOWN_RECEIVE != 0 {
            return Outcome::Reset;
        }
        self.shut(SHUTDOWN_RECEIVE);
        Outcome::Alive
    }

    fn shut(&mut self, flags: u32) {
        if self.host_shut | flags != self.host_shut {
            self.host_shut |= flags;
            self.due.shutdown = true;
        }
    }

    /// Writes what waits for the host, as far as the socket takes it.
    fn flush(&mut self) -> Outcome {
        while !self.to_host.is_empty() {
            match send(&self.stream, self.to_host.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(len) => {
                    self.to_host.drain(..len);
                    self.credit.forwarded(len as u32);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Outcome::Alive,
                Err(_) => return self.host_is_deaf(0),
            }
        }
        if self.to_host.capacity() > 64 << 10 {
            self.to_host = VecDeque::new();
        }
        if self.guest_shut & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        // A guest that has shut down both ways waits for a reset as the answer (§5.10.6.6).
        if self.guest_shut == SHUTDOWN_BOTH { Outcome::Reset } else { Outcome::Alive }
    }

    /// Takes note of the socket's readiness.
    pub(crate) fn socket_event(&mut self, readable: bool, writable: bool, hung_up: bool) -> Outcome {
        self.readable |= readable;
        self.hung_up |= hung_up;
        self.note_hang_up();
        if writable && self.phase == Phase::Established { self.flush() } else { Outcome::Alive }
    }

    /// A socket whose other side is closed is done with when nothing of it is to be read any more.
    fn note_hang_up(&mut self) {
        if self.hung_up && (self.host_done || self.guest_shut & SHUTDOWN_RECEIVE != 0) {
            self.shut(SHUTDOWN_BOTH);
        }
    }

    fn may_read(&self) -> bool {
        self.phase == Phase::Established
            && self.readable
            && !self.host_done
            && self.guest_shut & SHUTDOWN_RECEIVE == 0
    }

    /// Whether there is, or may be, something for the guest.
    pub(crate) fn has_outgoing(&self) -> bool {
        let due = &self.due;
        due.request
            || due.response
            || due.credit_update
            || due.shutdown
            || self.credit.is_update_due()
            || self.may_read() && (self.credit.available() > 0 || !self.credit_asked)
    }

    /// The next packet for the guest; data goes into `buffer`. `None` when there is none after all.
    ///
    /// # Errors
    /// The outcome, when the socket turns out to be dead.
    pub(crate) fn next_outgoing(&mut self, buffer: &mut [u8]) -> Result<Option<Outgoing>, Outcome> {
        let plain = |op| Ok(Some(Outgoing { op, flags: 0, len: 0 }));
        if std::mem::take(&mut self.due.request) {
            return plain(op::REQUEST);
        }
        if std::mem::take(&mut self.due.response) {
            return plain(op::RESPONSE);
        }
        if self.may_read() && !buffer.is_empty() {
            let room = buffer.len().min(self.credit.available() as usize);
            if room == 0 {
                if !self.credit_asked {
                    self.credit_asked = true;
                    return plain(op::CREDIT_REQUEST);
                }
            } else if let Some(len) = self.read(&mut buffer[..room])? {
                self.credit.sent(len as u32);
                // Every packet tells of our room.
                self.due.credit_update = false;
                return Ok(Some(Outgoing { op: op::RW, flags: 0, len }));
            }
        }
        // After the data: a shutdown ends it.
        if std::mem::take(&mut self.due.shutdown) {
            return Ok(Some(Outgoing { op: op::SHUTDOWN, flags: self.host_shut, len: 0 }));
        }
        if std::mem::take(&mut self.due.credit_update) || self.credit.is_update_due() {
            return plain(op::CREDIT_UPDATE);
        }
        Ok(None)
    }

    /// Reads from the socket; `None` when there is nothing now, or never again.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Outcome> {
        loop {
            match rustix::io::read(&self.stream, &mut *buffer) {
                Ok(0) => {
                    self.host_done = true;
                    self.shut(if self.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND });
                    return Ok(None);
                }
                Ok(len) => return Ok(Some(len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(_) => return Err(Outcome::Reset),
            }
        }
    }

    /// What a packet to the guest says about our buffer.
    pub(crate) fn tell_credit(&mut self) -> (u32, u32) {
        self.credit.tell()
    }
}
