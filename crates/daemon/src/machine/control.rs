//! The client of a worker's control socket.

use crate::Error;
use api::v1::error::ErrorCode;
use api::v1::network::Port;
use api::worker::control::{
    ControlErrorKind, Counters, Reply, ReplyLine, ReplyResult, Request, RequestLine, Status, VERSION,
};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A worker answers at once; one that does not is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer that is taken: room for a picture of the largest screen, which is rarely a tenth of that.
const ANSWER_LEN_MAX: u64 = 32 << 20;

/// Asks a worker. Each request has its own connection, so that none has to wait for another.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    path: PathBuf,
}

impl Control {
    pub(super) fn new(path: PathBuf) -> Control {
        Control { path }
    }

    /// Asks for the status.
    pub(crate) async fn status(&self) -> Result<Status, Error> {
        match self.ask(Request::Status {}).await? {
            Reply::Status(status) => Ok(status),
            _ => Err(Error::new(ErrorCode::Internal, "the machine's process answered something else")),
        }
    }

    /// Asks for the counters.
    pub(crate) async fn counters(&self) -> Result<Counters, Error> {
        match self.ask(Request::Counters {}).await? {
            Reply::Counters(counters) => Ok(counters),
            _ => Err(Error::new(ErrorCode::Internal, "the machine's process answered something else")),
        }
    }

    /// Asks for the ports of the host that lead into the guest.
    pub(crate) async fn ports(&self) -> Result<Vec<Port>, Error> {
        match self.ask(Request::Ports {}).await? {
            Reply::Ports { ports } => {
                Ok(ports.into_iter().map(|port| Port { rule: port.rule, nic: port.card }).collect())
            }
            _ => Err(Error::new(ErrorCode::Internal, "the machine's process answered something else")),
        }
    }

    /// Opens a port of the host; returns the rule as it is.
    pub(crate) async fn port_add(&self, card: usize, rule: &str) -> Result<String, Error> {
        match self.ask(Request::PortAdd { card, rule: rule.into() }).await? {
            Reply::Ports { ports } if ports.len() == 1 => Ok(ports[0].rule.clone()),
            _ => Err(Error::new(ErrorCode::Internal, "the machine's process answered something else")),
        }
    }

    /// Asks for something.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, Error> {
        self.ask_long(request, PATIENCE).await
    }

    /// Asks for something that may take this long.
    pub(crate) async fn ask_long(&self, request: Request, patience: Duration) -> Result<Reply, Error> {
        let answer = tokio::time::timeout(patience, self.exchange(request)).await;
        let line = answer
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .and_then(|answer| answer)
            .map_err(|e| {
                Error::new(ErrorCode::Unavailable, "the machine's process does not answer")
                    .with_cause(e)
                    .with_remedy("look at it with `arnia info`, or end it with `arnia stop --force`")
            })?;
        match line.result {
            ReplyResult::Ok(reply) => Ok(reply),
            ReplyResult::Error(error) => {
                let code = match error.kind {
                    ControlErrorKind::WrongState => ErrorCode::WrongState,
                    ControlErrorKind::Busy => ErrorCode::Unavailable,
                    ControlErrorKind::BadRequest => ErrorCode::Invalid,
                    ControlErrorKind::UnknownOperation | ControlErrorKind::UnsupportedVersion => {
                        ErrorCode::Unsupported
                    }
                    _ => ErrorCode::Internal,
                };
                Err(Error::new(code, error.message))
            }
        }
    }

    async fn exchange(&self, request: Request) -> io::Result<ReplyLine> {
        let mut stream = UnixStream::connect(&self.path).await?;
        let mut line = serde_json::to_vec(&RequestLine { id: None, version: Some(VERSION), request })?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream.take(ANSWER_LEN_MAX)).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    }
}
