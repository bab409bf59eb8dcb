//! One connection to an agent.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use api::agent::frame::{Frame, FrameKind, read_frame, write_frame};
use api::agent::{Reply, ReplyResult, Request, RequestLine, VERSION};

use crate::error::{Error, ErrorKind};
use crate::timed::Timed;

/// Longest greeting of a worker's socket: `OK ` and a number.
const GREETING_LEN_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Timed<UnixStream>,
    /// How long one exchange may take, from its first byte to its last.
    timeout: Duration,
}

impl Connection {
    /// On a stream that leads to an agent.
    pub(crate) fn new(stream: UnixStream, timeout: Duration) -> Connection {
        Connection { stream: Timed::new(stream, timeout), timeout }
    }

    /// Connects to a Unix socket where an agent listens itself.
    pub(crate) fn direct(path: &Path, timeout: Duration) -> Result<Connection, Error> {
        let not_ready = |error| Error::not_ready(format!("no agent answers at {}", path.display()), error);
        let stream = UnixStream::connect(path).map_err(not_ready)?;
        Ok(Connection::new(stream, timeout))
    }

    /// Connects through a worker's socket to a port of the guest.
    pub(crate) fn through_worker(path: &Path, port: u32, timeout: Duration) -> Result<Connection, Error> {
        let mut connection = Connection::direct(path, timeout)?;
        let not_ready = |error| {
            let text = format!(
                "the guest behind {} does not answer: it is not up yet, or has no agent",
                path.display()
            );
            Error::not_ready(text, error)
        };
        connection.greet(port).map_err(not_ready)?;
        Ok(connection)
    }

    fn greet(&mut self, port: u32) -> io::Result<()> {
        self.stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut greeting = Vec::new();
        // Byte by byte, because what follows the line is the agent's.
        while greeting.last() != Some(&b'\n') {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            greeting.push(byte[0]);
            if greeting.len() > GREETING_LEN_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a worker's socket"));
            }
        }
        if greeting.starts_with(b"OK ") {
            Ok(())
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&greeting).trim().to_owned()))
        }
    }

    /// Another exchange begins: it has the whole time. What is a series of frames and not a question with its answer
    /// has the time for each.
    pub(crate) fn begin(&mut self) {
        self.stream.begin(self.timeout);
    }

    /// All that is sent and received from now on must be done within `limit`.
    pub(crate) fn end_within(&mut self, limit: Duration) {
        self.stream.begin(limit);
    }

    /// From now on the other side may take as long as it likes.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn unlimit(&mut self) -> io::Result<()> {
        self.stream.unlimit()
    }

    /// The same connection for another thread, without a limit of its own.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn try_clone(&self) -> io::Result<Connection> {
        let mut clone = Connection::new(self.stream.get().try_clone()?, self.timeout);
        clone.unlimit()?;
        Ok(clone)
    }

    /// Ends it, from any thread and for all clones.
    pub(crate) fn hang_up(&self) {
        // Fails only if it is closed already.
        let _ = self.stream.get().shutdown(Shutdown::Both);
    }

    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream.into_inner()
    }

    /// Sends a request and takes the answer, within the time of one exchange.
    pub(crate) fn request(&mut self, request: Request) -> Result<Reply, Error> {
        let bytes = serde_json::to_vec(&RequestLine { version: VERSION, request })
            .map_err(|error| Error::protocol(format!("the request cannot be written: {error}")))?;
        self.begin();
        // A busy agent answers without reading; its word matters more than that it did not listen.
        let sent = self.send(FrameKind::Request, &bytes);
        match self.reply() {
            Err(error) if error.kind() == ErrorKind::Io => Err(sent.err().unwrap_or(error)),
            result => result,
        }
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Error> {
        write_frame(&mut self.stream, kind, payload)
            .map_err(|error| Error::io("the connection to the agent broke", error))
    }

    /// The next frame.
    pub(crate) fn receive(&mut self) -> Result<Frame, Error> {
        match read_frame(&mut self.stream) {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => {
                let text = "the agent closed the connection";
                Err(Error::io(text, io::ErrorKind::UnexpectedEof.into()))
            }
            Err(error) => Err(Error::io("the connection to the agent broke", error)),
        }
    }

    /// The next frame, which must be an answer.
    pub(crate) fn reply(&mut self) -> Result<Reply, Error> {
        let frame = self.receive()?;
        if frame.kind != FrameKind::Reply {
            return Err(Error::protocol(format!("the agent sent {:?} instead of an answer", frame.kind)));
        }
        match serde_json::from_slice(&frame.payload) {
            Ok(ReplyResult::Ok(reply)) => Ok(reply),
            Ok(ReplyResult::Error(error)) => Err(error.into()),
            Err(error) => Err(Error::protocol(format!("the agent's answer cannot be read: {error}"))),
        }
    }
}

/// An answer that belongs to another question.
pub(crate) fn mismatch(reply: &Reply) -> Error {
    let text: String = format!("{reply:?}").chars().take(60).collect();
    Error::protocol(format!("the agent answered another question: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Instant;

    #[test]
    fn an_answer_that_comes_byte_by_byte_is_timed_out() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            read_frame(&mut theirs).unwrap();
            let mut frame = Vec::new();
            write_frame(&mut frame, FrameKind::Reply, &vec![b' '; 100_000]).unwrap();
            for byte in frame.chunks(1) {
                if theirs.write_all(byte).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        let begin = Instant::now();
        let mut connection = Connection::new(ours, Duration::from_millis(300));
        let error = connection.request(Request::Info {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
        drop(connection);
        peer.join().unwrap();
    }
}
