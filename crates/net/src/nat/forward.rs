//! Port forwarding rules: their notation, and the listening sockets behind them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use crate::{NetError, NetErrorKind};

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A rule that a port of the host leads to a port of the guest.
///
/// Written `[ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]`: `2222:22`, `127.0.0.1:2222:22/tcp`, `8080:80/udp`,
/// `[::1]:2222:10.0.2.16:22`. Without an address the host listens on 127.0.0.1 only; `0.0.0.0` opens the port
/// to the network. Host port 0 lets the host choose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// The protocol.
    pub protocol: Transport,
    /// Where the host listens.
    pub listen: SocketAddr,
    /// The guest; the network's first guest if absent.
    pub guest_address: Option<Ipv4Addr>,
    /// The guest's port; not 0.
    pub guest_port: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.listen)?;
        if let Some(guest) = self.guest_address {
            write!(f, "{guest}:")?;
        }
        write!(f, "{}/{}", self.guest_port, self.protocol)
    }
}

impl FromStr for Forward {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        parse(text).map_err(|why| {
            NetError::new(
                NetErrorKind::Syntax,
                format!("port forwarding {text:?}: {why}; write [ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp], for example 2222:22"),
            )
        })
    }
}

fn parse(text: &str) -> Result<Forward, String> {
    let (rule, protocol) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((rule, "tcp")) => (rule, Transport::Tcp),
        Some((rule, "udp")) => (rule, Transport::Udp),
        Some((_, other)) => return Err(format!("{other:?} is not a protocol that can be forwarded")),
    };
    let (address, rest) = listen_address(rule)?;
    let mut parts = rest.split(':');
    let host_port = port(parts.next().unwrap_or(""), "host")?;
    let (guest_address, guest_port) = match (parts.next(), parts.next(), parts.next()) {
        (Some(guest_port), None, None) => (None, guest_port),
        (Some(guest), Some(guest_port), None) => {
            let guest = guest.parse().map_err(|_| format!("{guest:?} is not the guest's IPv4 address"))?;
            (Some(guest), guest_port)
        }
        (None, ..) => return Err("the guest's port is missing".into()),
        _ => return Err("there are too many parts".into()),
    };
    let guest_port = port(guest_port, "guest")?;
    if guest_port == 0 {
        return Err("the guest's port cannot be 0".into());
    }
    Ok(Forward { protocol, listen: SocketAddr::new(address, host_port), guest_address, guest_port })
}

/// Splits off the address to listen on, if the rule begins with one.
fn listen_address(rule: &str) -> Result<(IpAddr, &str), String> {
    if let Some(bracketed) = rule.strip_prefix('[') {
        let (address, rest) = bracketed.split_once("]:").ok_or("an IPv6 address ends with ]:")?;
        let address = address.parse().map_err(|_| format!("{address:?} is not an IPv6 address"))?;
        return Ok((IpAddr::V6(address), rest));
    }
    match rule.split_once(':') {
        Some((first, rest)) if first.bytes().any(|byte| !byte.is_ascii_digit()) => {
            let address = first
                .parse()
                .map_err(|_| format!("{first:?} is neither a port nor an IP address of this host"))?;
            Ok((IpAddr::V4(address), rest))
        }
        _ => Ok((IpAddr::V4(Ipv4Addr::LOCALHOST), rule)),
    }
}

fn port(text: &str, whose: &str) -> Result<u16, String> {
    // `parse` alone would take "+80".
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} is not a {whose} port"));
    }
    text.parse().map_err(|_| format!("{text} is not a {whose} port: ports end at 65535"))
}

/// The socket that listens for a rule.
#[derive(Debug)]
pub(super) enum ForwardSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Listens as the rule says. Returns the socket, which never blocks, and the address it got.
pub(super) fn listen(forward: &Forward) -> Result<(ForwardSocket, SocketAddr), NetError> {
    let bind = || -> io::Result<(ForwardSocket, SocketAddr)> {
        match forward.protocol {
            Transport::Tcp => {
                let listener = TcpListener::bind(forward.listen)?;
                listener.set_nonblocking(true)?;
                let bound = listener.local_addr()?;
                Ok((ForwardSocket::Tcp(listener), bound))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(forward.listen)?;
                socket.set_nonblocking(true)?;
                let bound = socket.local_addr()?;
                Ok((ForwardSocket::Udp(socket), bound))
            }
        }
    };
    bind().map_err(|source| {
        let advice = match source.kind() {
            io::ErrorKind::AddrInUse => {
                "something on this host already uses that port: choose another host port, or find it with `ss -lntup`"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need privileges: choose a host port of 1024 or above"
            }
            io::ErrorKind::AddrNotAvailable => {
                "this host has no such address: `ip address` lists those it has; 0.0.0.0 means all of them"
            }
            _ => "choose another host address or port",
        };
        NetError::new(
            NetErrorKind::Bind,
            format!(
                "cannot listen on {} port {} ({}) to forward it to the guest's port {}: {advice}",
                forward.listen.ip(),
                forward.listen.port(),
                forward.protocol,
                forward.guest_port
            ),
        )
        .with_source(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notation() {
        let v4 = |address: &str| address.parse::<Ipv4Addr>().unwrap();
        for (text, listen, guest, guest_port, protocol) in [
            ("2222:22", "127.0.0.1:2222", None, 22, Transport::Tcp),
            ("127.0.0.1:2222:22/tcp", "127.0.0.1:2222", None, 22, Transport::Tcp),
            ("8080:80/udp", "127.0.0.1:8080", None, 80, Transport::Udp),
            ("0.0.0.0:80:8080", "0.0.0.0:80", None, 8080, Transport::Tcp),
            ("[::1]:53:53/udp", "[::1]:53", None, 53, Transport::Udp),
            ("2222:10.0.2.16:22", "127.0.0.1:2222", Some(v4("10.0.2.16")), 22, Transport::Tcp),
            ("192.0.2.1:2222:10.0.2.16:22/udp", "192.0.2.1:2222", Some(v4("10.0.2.16")), 22, Transport::Udp),
            ("0:22", "127.0.0.1:0", None, 22, Transport::Tcp),
        ] {
            let forward: Forward = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(forward.listen, listen.parse().unwrap(), "{text}");
            assert_eq!(forward.guest_address, guest, "{text}");
            assert_eq!(forward.guest_port, guest_port, "{text}");
            assert_eq!(forward.protocol, protocol, "{text}");
            // What is printed means the same.
            assert_eq!(forward.to_string().parse::<Forward>().unwrap(), forward);
        }
    }

    #[test]
    fn refuse() {
        for (text, needle) in [
            ("", "not a host port"),
            ("22", "guest's port is missing"),
            ("2222:", "not a guest port"),
            (":22", "not a host port"),
            ("2222:0", "cannot be 0"),
            ("70000:22", "end at 65535"),
            ("2222:70000", "end at 65535"),
            ("+22:22", "neither a port nor an IP address"),
            ("2222:22/sctp", "not a protocol"),
            ("localhost:2222:22", "neither a port nor an IP address"),
            ("1:2:3", "not the guest's IPv4 address"),
            ("1.2.3.4:1:2.3.4.5:6:7", "too many parts"),
            ("[::1:2222:22", "ends with ]:"),
            ("[zz]:2222:22", "not an IPv6 address"),
        ] {
            let error = text.parse::<Forward>().err().unwrap_or_else(|| panic!("{text} was taken"));
            assert_eq!(error.kind(), NetErrorKind::Syntax);
            assert!(error.to_string().contains(needle), "{text}: {error}");
            assert!(error.to_string().contains("for example 2222:22"), "{error}");
        }
    }

    #[test]
    fn a_taken_port_is_named_with_advice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let forward: Forward = format!("{port}:22").parse().unwrap();
        let error = listen(&forward).unwrap_err();
        assert_eq!(error.kind(), NetErrorKind::Bind);
        let message = error.to_string();
        assert!(message.contains("127.0.0.1") && message.contains(&port.to_string()), "{message}");
        assert!(message.contains("choose another host port"), "{message}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
