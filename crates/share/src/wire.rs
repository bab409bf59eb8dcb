//! The sockets between machines and file servers.

use crate::Key;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, sockopt,
};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// What a machine sends first; the key follows.
pub const HELLO: &[u8; 8] = b"arnia/f1";
/// Length of the first packet.
pub(crate) const HELLO_LEN: usize = HELLO.len() + 32;

/// Messages under way to one side, in bytes as the kernel counts them: as many as it lets anybody have.
const BUFFER: usize = 4 << 20;
/// Machines that wait to be let in.
const BACKLOG: i32 = 8;

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Listens at `path`, which must not exist.
///
/// # Errors
/// When the path cannot be bound to.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::fs::fcntl_setfl(&socket, rustix::fs::OFlags::NONBLOCK)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to the server that listens at `path`, and shows the key.
pub(crate) fn plug_in(path: &Path, key: &Key) -> io::Result<OwnedFd> {
    let socket = socket()?;
    // A full backlog fails rather than waits.
    rustix::fs::fcntl_setfl(&socket, rustix::fs::OFlags::NONBLOCK)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    widen(&socket);
    let mut hello = [0; HELLO_LEN];
    hello[..HELLO.len()].copy_from_slice(HELLO);
    hello[HELLO.len()..].copy_from_slice(&key.0);
    rustix::net::send(&socket, &hello, SendFlags::NOSIGNAL)?;
    Ok(socket)
}

/// Whether a first packet shows this key.
pub(crate) fn is_hello(packet: &[u8], key: &Key) -> bool {
    packet.strip_prefix(HELLO).is_some_and(|shown| {
        // All bytes are looked at, so that time tells nothing.
        shown.len() == key.0.len() && shown.iter().zip(key.0).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    })
}

/// What is under way is counted to its sender.
pub(crate) fn widen(socket: &OwnedFd) {
    let _ = sockopt::set_socket_send_buffer_size(socket, BUFFER);
}
