//! The sockets between cards and switch.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, sockopt,
};

use super::PortKey;

/// What a card sends first; its key follows.
pub const HELLO: &[u8; 8] = b"arnia/1\n";
/// What the switch answers when it lets a card in.
pub const WELCOME: &[u8; 8] = b"plugged\n";

/// Frames under way to one side, in bytes as the kernel counts them: as many as it lets anybody have.
const BUFFER: usize = 4 << 20;
/// Cards that wait to be let in.
const BACKLOG: i32 = 64;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

/// Listens for cards at `path`, which must not exist.
///
/// # Errors
/// When the path cannot be bound to.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Begins to be plugged in: the answer comes later.
pub(super) fn plug_in(path: &Path, key: &PortKey) -> io::Result<OwnedFd> {
    let socket = socket()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    widen(&socket);
    rustix::net::send(&socket, &hello(key), SendFlags::NOSIGNAL)?;
    Ok(socket)
}

pub(super) fn hello(key: &PortKey) -> [u8; 40] {
    let mut hello = [0; 40];
    hello[..8].copy_from_slice(HELLO);
    hello[8..].copy_from_slice(&key.0);
    hello
}

pub(super) fn parse_hello(packet: &[u8]) -> Option<PortKey> {
    Some(PortKey(packet.strip_prefix(HELLO)?.try_into().ok()?))
}

/// Takes a card that wants to come in.
pub(super) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let socket = rustix::net::accept_with(listener, FLAGS)?;
    widen(&socket);
    Ok(socket)
}

/// Frames that are under way are counted to their sender.
fn widen(socket: &OwnedFd) {
    let _ = sockopt::set_socket_send_buffer_size(socket, BUFFER);
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// The other side is behind: the packet is lost.
    Full,
    /// The other side is gone.
    Closed,
}

pub(super) fn send(socket: impl AsFd, packet: &[u8]) -> Sent {
    match rustix::net::send(socket, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Sent::Yes,
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR | Errno::MSGSIZE) => Sent::Full,
        Err(_) => Sent::Closed,
    }
}

/// What there was to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet of this length; longer ones than the room for them are not frames of this network.
    Packet(usize),
    TooLong,
    Nothing,
    Closed,
}

pub(super) fn receive(socket: impl AsFd, room: &mut [u8]) -> Received {
    let size = room.len();
    match rustix::net::recv(socket, room, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        Ok((_, 0)) => Received::Closed,
        Ok((_, len)) if len > size => Received::TooLong,
        Ok((_, len)) => Received::Packet(len),
        Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
        Err(_) => Received::Closed,
    }
}
