//! Telling the service manager that has started this process how far it is (sd_notify(3)).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon answers: who waits for that may go on.
pub(crate) fn ready() {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = tell(&socket, "READY=1") {
        log::warn!("the service manager cannot be told that the daemon is ready: {error}");
    }
}

/// Sends a state to the socket; a name that begins with `@` is an abstract one.
fn tell(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_is_told_at_either_kind_of_socket() {
        let name = format!("arnia-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let of_path = UnixDatagram::bind(&path).expect("a socket");
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let of_name = UnixDatagram::bind_addr(&address).expect("a socket");
        for (socket, place) in
            [(of_path, path.clone().into_os_string()), (of_name, format!("@{name}").into())]
        {
            tell(&place, "READY=1").expect("it is sent");
            let mut bytes = [0; 16];
            let len = socket.recv(&mut bytes).expect("it comes");
            assert_eq!(&bytes[..len], b"READY=1");
        }
        std::fs::remove_file(path).expect("it is there");
        assert!(tell(OsStr::new("/no/such/socket"), "READY=1").is_err());
    }
}
