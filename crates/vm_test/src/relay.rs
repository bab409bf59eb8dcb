//! A relay of TCP connections on the host's loopback that can break them off, as bad networks do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Result;

/// The running relay. Dropping it ends it; connections end when either side does.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    to: u16,
    ending: AtomicBool,
    /// Bytes that a connection may bring from the server.
    limit: AtomicU64,
    /// Bytes that came from the server.
    brought: AtomicU64,
    /// Bytes that clients sent.
    sent: AtomicU64,
}

impl Relay {
    /// Starts one to a port of the loopback.
    ///
    /// # Errors
    /// If the host has no free port.
    pub fn to(port: u16) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let shared = Arc::new(Shared {
            to: port,
            ending: AtomicBool::new(false),
            limit: AtomicU64::new(u64::MAX),
            brought: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let port = listener.local_addr()?.port();
        let seen = Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.ending.load(Ordering::Acquire) {
                    return;
                }
                // Either side finds out for itself when the other is gone.
                let _ = seen.connect(stream);
            }
        });
        Ok(Relay { port, shared, acceptor: Some(acceptor) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks connections off when they have brought so many bytes from the server; `None` lets them be.
    pub fn break_after(&self, bytes: Option<u64>) {
        self.shared.limit.store(bytes.unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Bytes that came from the server until now.
    pub fn brought(&self) -> u64 {
        self.shared.brought.load(Ordering::Acquire)
    }

    /// Bytes that clients have sent until now.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }
}

impl Shared {
    fn connect(self: &Arc<Shared>, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.to))?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_client.read(&mut buffer) {
                shared.sent.fetch_add(count as u64, Ordering::AcqRel);
                if to_server.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let (shared, mut from_server, mut to_client) = (Arc::clone(self), server, client);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            let mut left = shared.limit.load(Ordering::Acquire);
            while let Ok(count @ 1..) = from_server.read(&mut buffer) {
                let here = count.min(usize::try_from(left).unwrap_or(usize::MAX));
                left -= here as u64;
                shared.brought.fetch_add(here as u64, Ordering::AcqRel);
                if to_client.write_all(&buffer[..here]).is_err() || here < count {
                    break;
                }
            }
            let _ = to_client.shutdown(Shutdown::Both);
            let _ = from_server.shutdown(Shutdown::Both);
        });
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        // Wakes the acceptor.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}
