//! Frames of the agent's protocol, without a thread for each stream: a guest may be silent for days.

use crate::Error;
use api::agent::frame::{Frame, FrameDecoder, FrameKind, write_frame};
use api::agent::{PORT, Reply, ReplyResult, Request, RequestLine, VERSION};
use api::v1::error::ErrorCode;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long the agent has to take a connection, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest greeting of a worker's socket: `OK ` and a number.
const GREETING_LEN_MAX: usize = 32;
/// Longest reason that is passed on, in characters.
const CAUSE_LEN_MAX: usize = 256;

/// The frames that come out of a stream.
pub(super) struct Frames<R> {
    reader: R,
    decoder: FrameDecoder,
    buffer: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(reader: R) -> Frames<R> {
        Frames { reader, decoder: FrameDecoder::default(), buffer: vec![0; 16 * 1024].into() }
    }

    /// The next frame; nothing when the stream has ended. May be given up and called again.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match self.reader.read(&mut self.buffer).await? {
                0 => return Ok(None),
                count => self.decoder.push(&self.buffer[..count]),
            }
        }
    }
}

/// Sends a frame.
pub(super) async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    kind: FrameKind,
    payload: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, kind, payload)?;
    writer.write_all(&bytes).await
}

/// Connects to the agent behind a worker's socket.
pub(super) async fn connect(socket: &Path) -> Result<UnixStream, Error> {
    let greeted = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await?;
        let mut greeting = Vec::new();
        // Byte by byte, because what follows the line is the agent's.
        while greeting.last() != Some(&b'\n') {
            greeting.push(stream.read_u8().await?);
            if greeting.len() > GREETING_LEN_MAX {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
        }
        match greeting.starts_with(b"OK ") {
            true => Ok(stream),
            false => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    };
    match tokio::time::timeout(PATIENCE, greeted).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(super::no_agent(Some(&error))),
        Err(error) => Err(super::no_agent(Some(&error))),
    }
}

/// Sends a request, and takes the answer.
pub(super) async fn request<R: AsyncRead + Unpin>(
    frames: &mut Frames<R>,
    writer: &mut (impl AsyncWrite + Unpin),
    request: Request,
) -> Result<Reply, Error> {
    let line = serde_json::to_vec(&RequestLine { version: VERSION, request })
        .map_err(|e| Error::internal("the request to the agent cannot be written", e))?;
    if line.len() > api::agent::frame::FRAME_LEN_MAX {
        return Err(Error::new(ErrorCode::TooLarge, "arguments and environment are too long")
            .with_remedy("send what is long by standard input or as a file"));
    }
    let exchange = async {
        // A busy agent answers without reading; its word matters more than that it did not listen.
        let sent = send(writer, FrameKind::Request, &line).await;
        match frames.next().await {
            Ok(Some(frame)) if frame.kind == FrameKind::Reply => Ok(frame.payload),
            Ok(Some(_)) => Err(io::Error::other("it sent something else")),
            Ok(None) => Err(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(error),
        }
    };
    let payload = match tokio::time::timeout(PATIENCE, exchange).await {
        Err(_) => return Err(Error::new(ErrorCode::GuestTimeout, "the guest's agent does not answer")),
        Ok(answer) => answer.map_err(failed)?,
    };
    match serde_json::from_slice(&payload) {
        Ok(ReplyResult::Ok(reply)) => Ok(reply),
        Ok(ReplyResult::Error(error)) => {
            Err(super::refused(error.kind, super::printable(&error.message, 1024)))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The agent did what it must not do, or went away.
pub(super) fn failed(cause: impl ToString) -> Error {
    // What cannot be read is quoted in the reason.
    let cause = super::printable(&cause.to_string(), CAUSE_LEN_MAX);
    Error::new(ErrorCode::GuestFailed, "the guest's agent failed").with_cause(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_guest_sends_reaches_a_terminal() {
        let text = br#"{"type":"\u001b[2J"}"#;
        let error = serde_json::from_slice::<api::agent::Event>(text).unwrap_err();
        assert!(error.to_string().contains('\x1b'), "serde quotes it: {error}");
        assert!(!failed(error).to_string().contains('\x1b'));
    }
}
