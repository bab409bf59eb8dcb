//! One spliced connection: the endpoint towards the guest and the host's socket.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};

use super::buffer::{CHUNK, ChunkPool, Pools, SLICES_MAX};
use super::endpoint::{End, Endpoint, Segment, State};
use super::seq::Seq;
use crate::MacAddress;
use crate::nat::host;

/// Bytes read from a socket with one call.
const READ_MAX: usize = SLICES_MAX * CHUNK / 2;

/// What distinguishes a connection, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowId {
    pub(super) guest: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
}

/// The SYN that a connection waits with until the host's socket is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syn {
    pub(super) seq: Seq,
    pub(super) window: u16,
    pub(super) mss: Option<u16>,
    pub(super) window_shift: Option<u8>,
}

impl Syn {
    pub(super) fn segment(&self) -> Segment<'static> {
        Segment {
            seq: self.seq,
            ack: None,
            flags: super::endpoint::Flags { syn: true, ..Default::default() },
            window: self.window,
            mss: self.mss,
            window_shift: self.window_shift,
            payload: &[],
        }
    }
}

/// How far a connection is.
#[derive(Debug)]
pub(super) enum Phase {
    /// The guest waits for the host's socket.
    Connecting(Syn),
    /// Data flows, or will once the guest has answered.
    Spliced(Box<Endpoint>),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: FlowId,
    /// Where the guest is; None until it is known.
    pub(super) mac: Option<MacAddress>,
    pub(super) phase: Phase,
    pub(super) socket: Option<OwnedFd>,
    /// The socket has, or may have, something to read; it takes, or may take, something.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// End of file was read.
    host_eof: bool,
    /// The host's peer has reset the connection.
    host_reset: bool,
    /// `shutdown` was called, or writing has failed for good.
    write_shut: bool,
    /// In the table's list of flows that may have a segment for the guest.
    pub(super) is_ready: bool,
    /// In the table's list of flows that have data for the host.
    pub(super) is_dirty: bool,
    /// In the table's list of flows in TIME-WAIT.
    pub(super) is_waiting_out: bool,
    /// The earliest time that the table's timers hold for this flow.
    pub(super) planned: Option<Instant>,
    /// When a connection that is not open by then is given up.
    pub(super) open_by: Option<Instant>,
}

/// The end of a flow's work with its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketFate {
    Needed,
    /// Close it; everything is said.
    Close,
    /// Close it with a reset.
    Reset,
}

impl Flow {
    pub(super) fn new(id: FlowId, mac: Option<MacAddress>, phase: Phase, socket: OwnedFd) -> Self {
        Self {
            id,
            mac,
            phase,
            socket: Some(socket),
            readable: false,
            writable: false,
            host_eof: false,
            host_reset: false,
            write_shut: false,
            is_ready: false,
            is_dirty: false,
            is_waiting_out: false,
            planned: None,
            open_by: None,
        }
    }

    pub(super) fn endpoint(&mut self) -> Option<&mut Endpoint> {
        match &mut self.phase {
            Phase::Connecting(_) => None,
            Phase::Spliced(endpoint) => Some(endpoint),
        }
    }

    /// Notes an error that the kernel reports for the socket.
    pub(super) fn on_socket_error(&mut self) {
        if let Some(socket) = &self.socket
            && let Ok(Err(_)) = sockopt::socket_error(socket)
        {
            self.host_reset = true;
        }
    }

    /// Writes what the guest has sent to the socket, as far as that takes it, and the end of it.
    pub(super) fn pump_to_host(&mut self, pools: &mut Pools) {
        let Phase::Spliced(endpoint) = &mut self.phase else { return };
        let Some(socket) = &self.socket else { return };
        while self.writable && !self.write_shut && !endpoint.rx.is_empty() {
            let (slices, used) = endpoint.rx.slices();
            let sent = rustix::net::sendmsg(
                socket,
                &slices[..used],
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(count) => endpoint.rx.consume(count, &mut pools.rx),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    // The peer is gone; what it sent before may still be read.
                    self.write_shut = true;
                    self.host_reset = true;
                    self.readable = true;
                }
            }
        }
        if self.write_shut && !endpoint.rx.is_empty() {
            let count = endpoint.rx.len();
            endpoint.rx.consume(count, &mut pools.rx);
        }
        if endpoint.rx.is_empty() {
            endpoint.trim_rx(pools);
            let broken = endpoint.end().is_some_and(|end| end != End::Finished);
            if endpoint.is_rx_closed() && !self.write_shut && !broken {
                self.write_shut = true;
                // Fails when the connection is broken, which reading finds too.
                let _ = rustix::net::shutdown(socket, Shutdown::Write);
            }
        }
        endpoint.on_rx_taken();
    }

    /// Reads more for the guest, when it would take more than there is. Ends the connection as the host's side
    /// has ended it.
    pub(super) fn pump_to_guest(&mut self, pools: &mut Pools, limit: usize) {
        let Phase::Spliced(endpoint) = &mut self.phase else { return };
        if let Some(socket) = &self.socket
            && self.readable
            && !self.host_eof
            && endpoint.is_hungry()
        {
            let count = limit.saturating_sub(endpoint.tx.len()).min(READ_MAX);
            let start = endpoint.tx.len();
            let backed = endpoint.tx.reserve(start + count, &mut pools.tx);
            let count = count.min(backed - start);
            if count > 0 {
                let (mut slices, used) = endpoint.tx.spare_slices(count);
                let received = rustix::net::recvmsg(
                    socket,
                    &mut slices[..used],
                    &mut RecvAncillaryBuffer::default(),
                    RecvFlags::empty(),
                );
                match received.map(|message| message.bytes) {
                    Ok(0) => self.host_eof = true,
                    Ok(count) => endpoint.tx.extend(count),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => self.readable = false,
                    Err(_) => {
                        self.host_reset = true;
                        self.host_eof = true;
                    }
                }
                endpoint.tx.trim(&mut pools.tx);
            }
        }
        if self.host_eof {
            if !self.host_reset {
                endpoint.close();
            } else if endpoint.unsent() == 0 {
                endpoint.abort();
            }
        }
    }

    /// Tells whether the flow still needs its socket.
    pub(super) fn socket_fate(&self) -> SocketFate {
        let Phase::Spliced(endpoint) = &self.phase else { return SocketFate::Needed };
        match endpoint.end() {
            Some(End::Reset | End::Aborted) => SocketFate::Reset,
            Some(End::Finished) if self.write_shut => SocketFate::Close,
            None if endpoint.state() == State::TimeWait && self.write_shut => SocketFate::Close,
            _ => SocketFate::Needed,
        }
    }

    /// Closes the socket.
    pub(super) fn drop_socket(&mut self, fate: SocketFate) {
        if let Some(socket) = self.socket.take()
            && fate == SocketFate::Reset
        {
            host::tcp_reset_on_close(&socket);
        }
    }
}

/// Returns how many bytes one flow may hold in a direction: its limit, but never more than a share of what is
/// left, so that a few flows cannot starve the others.
pub(super) fn share(pool: &ChunkPool, limit: usize) -> usize {
    limit.min(pool.available() / 4).max(CHUNK)
}
