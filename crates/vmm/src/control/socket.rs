//! Making the socket.

use crate::Error;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Listens at `path`, readable and writable for this user alone.
pub(super) fn bind(path: &Path) -> Result<UnixListener, Error> {
    let error = match bind_private(path) {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    if error.kind() != io::ErrorKind::AddrInUse {
        return Err(Error::bad_input(format!("the control socket {path:?} cannot be made"))
            .with_source(error)
            .with_advice("check --control"));
    }
    if !std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return Err(Error::bad_input(format!("{path:?} exists and is not a socket"))
            .with_advice("choose another path for --control"));
    }
    match UnixStream::connect(path) {
        // Nobody listens: it was left by a process that is gone.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            let replaced = std::fs::remove_file(path).and_then(|()| bind_private(path));
            replaced.map_err(|e| {
                Error::bad_input(format!("the control socket {path:?} cannot be replaced"))
                    .with_source(e)
                    .with_advice("check --control")
            })
        }
        _ => Err(Error::bad_input(format!("another program listens at {path:?}"))
            .with_advice("choose another path for --control, or stop the machine that uses it")),
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // The socket must never exist with wider rights, so the mask is set before. It belongs to the whole
    // process; other threads of this program make no files at this time.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let result = UnixListener::bind(path);
    rustix::process::umask(before);
    result
}
