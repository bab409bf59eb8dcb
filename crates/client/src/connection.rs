//! How a daemon is reached.

use crate::Error;
use crate::tls::Tls;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// A connection to a daemon, by whatever way.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> Duplex for T {}

/// A connection to a daemon.
pub type Stream = Box<dyn Duplex>;

/// Where a daemon is.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// On this host, at this socket.
    Unix(PathBuf),
    /// On another host, by TLS.
    Tls(Tls),
}

impl Target {
    pub(crate) fn unix(socket: &Path) -> Target {
        Target::Unix(socket.to_owned())
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Stream, Error> {
        match self {
            Target::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(Error::unreachable(self, error)),
            },
            Target::Tls(tls) => match tls.connect().await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(Error::unreachable(self, error)),
            },
        }
    }

    /// What the host is called in requests.
    pub(crate) fn host(&self) -> &str {
        match self {
            Target::Unix(_) => "localhost",
            Target::Tls(tls) => &tls.address,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "{}", path.display()),
            Target::Tls(tls) => f.write_str(&tls.address),
        }
    }
}
