//! One client of the control socket.

use super::Handler;
use api::worker::control::{
    ControlError, ControlErrorKind, LINE_LEN_MAX, Reply, ReplyLine, ReplyResult, Request, RequestLine,
    VERSION,
};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// A client that does not take its answers is sent away after this long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the answer to a request goes. When it is dropped instead, the client is told that the machine has
/// ended.
#[derive(Debug)]
pub struct ReplyTo(SyncSender<Result<Reply, ControlError>>);

impl ReplyTo {
    /// Answers.
    pub fn send(self, result: Result<Reply, ControlError>) {
        // The client waits for exactly one answer; when it is gone, nobody wants it.
        let _ = self.0.try_send(result);
    }

    /// Answers that the machine's state does not allow it, or that something failed.
    pub fn refuse(self, kind: ControlErrorKind, message: impl Into<String>) {
        self.send(Err(ControlError { kind, message: message.into() }));
    }

    /// A reply and where it arrives: for callers that are no client of the socket.
    pub fn channel() -> (ReplyTo, Receiver<Result<Reply, ControlError>>) {
        let (sender, receiver) = sync_channel(1);
        (ReplyTo(sender), receiver)
    }
}

pub(super) struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    handler: Handler,
}

impl Client {
    pub(super) fn new(stream: UnixStream, handler: Handler) -> io::Result<Client> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Client { reader: BufReader::new(stream.try_clone()?), writer: stream, handler })
    }

    pub(super) fn turn_away(mut self) {
        let _ = self.answer(None, Err(error(ControlErrorKind::Busy, "too many clients are connected")));
    }

    /// Serves the client until it goes, or sends something that cannot be a line.
    pub(super) fn serve(mut self) {
        self.serve_lines();
        // The server holds the connection, too, until it looks after its clients again.
        let _ = self.writer.shutdown(Shutdown::Both);
    }

    fn serve_lines(&mut self) {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut self.reader).take(LINE_LEN_MAX as u64 + 1).read_until(b'\n', &mut line);
            if !matches!(read, Ok(count) if count > 0) {
                return;
            }
            if line.len() > LINE_LEN_MAX {
                let message = format!("a line is longer than {LINE_LEN_MAX} bytes");
                let _ = self.answer(None, Err(error(ControlErrorKind::Malformed, message)));
                return;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let (id, result) = match parse(&line) {
                Ok(request) => (request.id, self.ask(request.request)),
                Err((id, error)) => (id, Err(error)),
            };
            if self.answer(id, result).is_err() {
                return;
            }
        }
    }

    fn ask(&self, request: Request) -> Result<Reply, ControlError> {
        let (reply, answer) = ReplyTo::channel();
        (self.handler)(request, reply);
        answer.recv().unwrap_or_else(|_| Err(error(ControlErrorKind::WrongState, "the machine has ended")))
    }

    fn answer(&mut self, id: Option<u64>, result: Result<Reply, ControlError>) -> io::Result<()> {
        let result = match result {
            Ok(reply) => ReplyResult::Ok(reply),
            Err(error) => ReplyResult::Error(error),
        };
        let mut line = serde_json::to_vec(&ReplyLine { id, result })?;
        line.push(b'\n');
        self.writer.write_all(&line)
    }
}

fn error(kind: ControlErrorKind, message: impl Into<String>) -> ControlError {
    ControlError { kind, message: message.into() }
}

/// Reads a request; on failure returns what is known of its ID.
fn parse(line: &[u8]) -> Result<RequestLine, (Option<u64>, ControlError)> {
    let value: serde_json::Value = serde_json::from_slice(line)
        .map_err(|e| (None, error(ControlErrorKind::Malformed, format!("the line is not JSON: {e}"))))?;
    let id = value.get("id").and_then(|id| id.as_u64());
    let refuse = |kind, message: String| (id, error(kind, message));
    if let Some(version) = value.get("version").and_then(|version| version.as_u64())
        && version != u64::from(VERSION)
    {
        let message = format!("version {version} is not spoken here: use {VERSION}");
        return Err(refuse(ControlErrorKind::UnsupportedVersion, message));
    }
    let op = value.get("op").and_then(|op| op.as_str()).map(str::to_owned);
    serde_json::from_value(value).map_err(|e| match op {
        Some(op) if !is_known(&op) => refuse(ControlErrorKind::UnknownOperation, e.to_string()),
        _ => refuse(ControlErrorKind::Malformed, e.to_string()),
    })
}

/// Whether there is an operation of this name, whatever it needs beside it.
fn is_known(op: &str) -> bool {
    match serde_json::from_value::<Request>(serde_json::json!({ "op": op })) {
        Ok(_) => true,
        Err(e) => !e.to_string().contains("unknown variant"),
    }
}

/// Reads a line as the socket does. For fuzzing.
pub(crate) fn is_request(line: &[u8]) -> bool {
    parse(line).is_ok()
}
