//! A small web server on the host's loopback, for guests to come to.
//!
//! `GET /bytes/N` answers with N bytes that are always the same; `POST /sum` answers with the
//! SHA-256 of what was sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::Patience;

/// The running server. Dropping it ends it.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

/// Largest body in either direction.
const BODY_MAX: usize = 256 << 20;

impl HttpServer {
    /// Starts it on a free port of the loopback.
    ///
    /// # Errors
    /// If the host has no free port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let ending = Arc::new(AtomicBool::new(false));
        let seen_ending = Arc::clone(&ending);
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen_ending.load(Ordering::Acquire) {
                    return;
                }
                // A guest that breaks its connection off fails its own test, which says so.
                thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { address, ending, acceptor: Some(acceptor) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What `/bytes/<length>` answers with.
    pub fn bytes(length: usize) -> Vec<u8> {
        // Marsaglia's xorshift64: no repeats within any length used here.
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(move || {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()
        });
        words.flatten().take(length).collect()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // The connection wakes the acceptor, which then sees that it is to end.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn serve(stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Patience::Command.limit()))?;
    stream.set_write_timeout(Some(Patience::Command.limit()))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>()?.min(BODY_MAX);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, answer) = match answer(method, path, &body) {
        Ok(answer) => ("200 OK", answer),
        Err(error) => ("404 Not Found", error.to_string().into_bytes()),
    };
    let mut stream = reader.into_inner();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len())?;
    Ok(stream.write_all(&answer)?)
}

fn answer(method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
    match (method, path.strip_prefix("/bytes/")) {
        ("GET", Some(length)) => {
            let length: usize = length.parse().context("the length is no number")?;
            Ok(HttpServer::bytes(length.min(BODY_MAX)))
        }
        ("POST", None) if path == "/sum" => Ok(format!("{}\n", sha256_hex(body)).into_bytes()),
        _ => bail!("nothing is at {path}"),
    }
}

/// SHA-256, as `sha256sum` prints it.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &HttpServer, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn requests_get_their_answers() {
        let server = HttpServer::start().expect("a free port");
        let bytes = ask(&server, "GET /bytes/5 HTTP/1.0\r\n\r\n");
        assert!(bytes.starts_with("HTTP/1.1 200 ") && bytes.contains("Content-Length: 5\r\n"), "{bytes}");
        let sum = ask(&server, "POST /sum HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc");
        assert!(sum.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "{sum}");
        assert!(ask(&server, "GET /other HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn bytes_are_the_same_each_time_and_do_not_repeat() {
        assert_eq!(HttpServer::bytes(1000), HttpServer::bytes(2000)[..1000]);
        let bytes = HttpServer::bytes(1 << 16);
        let mut words: Vec<_> = bytes.chunks(8).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 1 << 13);
    }
}
