//! Making the socket.

use crate::Error;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Clients that may wait to be accepted, as many as the standard library lets wait.
const BACKLOG: i32 = 128;

/// Listens at `path`, which `option` names, readable and writable for this user alone. A socket that a dead
/// process has left is replaced.
pub(crate) fn bind(path: &Path, option: &str) -> Result<UnixListener, Error> {
    let error = match bind_private(path) {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    if error.kind() != io::ErrorKind::AddrInUse {
        return Err(Error::bad_input(format!("the socket {path:?} cannot be made"))
            .with_source(error)
            .with_advice(format!("check {option}")));
    }
    if !std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return Err(Error::bad_input(format!("{path:?} exists and is not a socket"))
            .with_advice(format!("choose another path for {option}")));
    }
    match UnixStream::connect(path) {
        // Nobody listens: it was left by a process that is gone.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            let replaced = std::fs::remove_file(path).and_then(|()| bind_private(path));
            replaced.map_err(|e| {
                Error::bad_input(format!("the socket {path:?} cannot be replaced"))
                    .with_source(e)
                    .with_advice(format!("check {option}"))
            })
        }
        _ => Err(Error::bad_input(format!("another program listens at {path:?}"))
            .with_advice(format!("choose another path for {option}, or stop the machine that uses it"))),
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file must never exist with wider rights. Linux makes it with those that the socket has when it
    // is bound, less the process's mask (net/unix/af_unix.c, unix_bind_bsd). Setting the mask instead would
    // change the rights of whatever another thread makes at the same moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}
