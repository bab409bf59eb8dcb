//! Listening for the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, listen, socket,
};

use crate::session;

/// Where the agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The virtio socket.
    Vsock,
    /// A Unix socket, for tests.
    Unix(PathBuf),
}

impl Address {
    /// Reads `vsock` or `unix:PATH`.
    pub fn parse(text: &str) -> Option<Address> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Some(Address::Unix(path.into())),
            None if text == "vsock" => Some(Address::Vsock),
            _ => None,
        }
    }
}

/// Connections at once: each costs a thread.
const CONNECTIONS_MAX: usize = 64;
/// `VMADDR_CID_ANY` (linux/vm_sockets.h): on whatever address this machine has.
const CID_ANY: u32 = u32::MAX;
/// `VMADDR_CID_HOST`: the host.
const CID_HOST: u32 = 2;

/// Serves connections for ever.
///
/// # Errors
/// A sentence, if it cannot listen at all.
pub fn serve(address: &Address) -> Result<(), String> {
    let listener: OwnedFd = match address {
        Address::Vsock => vsock_listener()?,
        Address::Unix(path) => UnixListener::bind(path)
            .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?
            .into(),
    };
    if *address == Address::Vsock {
        // Beside: the host need not wait for it.
        let _ = thread::Builder::new().name("shares".into()).spawn(crate::shares::mount_at_start);
    }
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        let connection = match accept4(&listener, SockFlag::SOCK_CLOEXEC) {
            Ok(connection) => connection,
            Err(nix::Error::EINTR | nix::Error::ECONNABORTED) => continue,
            Err(error) => return Err(format!("cannot accept connections: {error}")),
        };
        if *address == Address::Vsock && !is_from_host(&connection) {
            eprintln!("arnia-agent: refused a connection that is not the host's");
            continue;
        }
        if count.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            count.fetch_sub(1, Ordering::Relaxed);
            session::refuse(File::from(connection));
            continue;
        }
        let done = Release(Arc::clone(&count));
        let spawned = thread::Builder::new().name("session".into()).spawn(move || {
            let _done = done;
            if let Err(error) = session::serve(File::from(connection)) {
                eprintln!("arnia-agent: a connection was ended: {error}");
            }
        });
        if let Err(error) = spawned {
            eprintln!("arnia-agent: cannot serve a connection: {error}");
        }
    }
}

/// Gives a connection's place back.
struct Release(Arc<AtomicUsize>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn vsock_listener() -> Result<OwnedFd, String> {
    let listening = || -> nix::Result<OwnedFd> {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(CID_ANY, api::agent::PORT))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(fd)
    };
    listening().map_err(|error| {
        let error = io::Error::from(error);
        format!(
            "cannot listen on the virtio socket: {error}; the kernel needs the module \
             vmw_vsock_virtio_transport, and no other agent may run"
        )
    })
}

/// Whether the peer is the host and not a program of this guest, which can reach the port by the
/// loopback address.
fn is_from_host(connection: &OwnedFd) -> bool {
    getpeername::<VsockAddr>(connection.as_raw_fd()).is_ok_and(|peer| peer.cid() == CID_HOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        assert_eq!(Address::parse("vsock"), Some(Address::Vsock));
        assert_eq!(Address::parse("unix:/run/a"), Some(Address::Unix("/run/a".into())));
        for text in ["", "unix:", "tcp:1", "vsock:1"] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }
}
