//! The control socket: requests from other programs.
//!
//! One thread listens, one serves each client: it reads a line, passes the request to the machine's
//! controller, waits for the answer and writes it. The protocol is in `api::worker::control`.

mod client;
mod socket;

use client::Client;
pub use client::ReplyTo;
pub(crate) use client::is_request;
pub(crate) use socket::bind;

use crate::Error;
use crate::undo::Made;
use api::worker::control::Request;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// More clients than this are sent away.
const CLIENTS_MAX: usize = 32;

/// Passes a request on; the answer goes to the sender.
pub type Handler = Arc<dyn Fn(Request, ReplyTo) + Send + Sync>;

/// A socket that exists, and nobody is served yet.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    made: Made,
}

impl Listener {
    /// Makes the socket at `path`, for this user alone. One that a dead process has left is replaced.
    ///
    /// # Errors
    /// When something else is there or somebody listens already.
    pub fn bind(path: &Path) -> Result<Listener, Error> {
        let listener = socket::bind(path, "--control")?;
        Ok(Listener { listener, made: Made::new(path) })
    }

    /// Starts to serve clients.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn serve(self, handler: Handler) -> io::Result<Server> {
        let clients: Arc<Mutex<Clients>> = Arc::default();
        let (listener, for_thread) = (self.listener.try_clone()?, clients.clone());
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            // Ends when the listener is shut down.
            while let Ok((stream, _)) = listener.accept() {
                lock(&for_thread).accept(stream, &handler);
            }
        })?;
        Ok(Server { listener: self.listener, thread: Some(thread), clients, _made: self.made })
    }
}

fn lock(clients: &Mutex<Clients>) -> MutexGuard<'_, Clients> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clients that are being served.
#[derive(Debug, Default)]
struct Clients {
    connections: Vec<Connection>,
    /// Nobody is accepted any more.
    closed: bool,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Clients {
    fn accept(&mut self, stream: UnixStream, handler: &Handler) {
        self.connections.retain(|client| !client.thread.is_finished());
        let client = stream.try_clone().and_then(|stream| Client::new(stream, handler.clone()));
        let Ok(client) = client else { return };
        if self.closed {
            return;
        }
        if self.connections.len() >= CLIENTS_MAX {
            client.turn_away();
            return;
        }
        let thread = std::thread::Builder::new().name("control client".into()).spawn(|| client.serve());
        if let Ok(thread) = thread {
            self.connections.push(Connection { stream, thread });
        }
    }
}

/// The control socket at work. Dropping it answers what has been asked, sends the clients away and removes
/// the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
    clients: Arc<Mutex<Clients>>,
    _made: Made,
}

impl Drop for Server {
    fn drop(&mut self) {
        let connections = {
            let mut clients = lock(&self.clients);
            clients.closed = true;
            std::mem::take(&mut clients.connections)
        };
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for client in &connections {
            // Nothing more is read; answers on their way still go out.
            let _ = client.stream.shutdown(Shutdown::Read);
        }
        for client in connections {
            let _ = client.thread.join();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
