//! WebSockets: consoles, and programs in guests.

use crate::{Client, Error, Stream, escaped};
use api::agent::{Control, ExecParams};
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::guest::{EXEC_STDERR, EXEC_STDIN, EXEC_STDOUT, ExecMessage};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::{Request, header};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

/// A console: what the guest writes and what is typed, as binary messages.
pub type Console = WebSocketStream<Stream>;

impl Client {
    /// Connects to a machine's console.
    ///
    /// # Errors
    /// When the machine does not run, or the daemon cannot be reached.
    pub async fn vm_console(&self, name: &str) -> Result<Console, Error> {
        self.websocket(&format!("/v1/vms/{}/console", escaped(name))).await
    }

    /// Starts a program in a guest; waits for so many seconds for an agent that does not answer yet.
    ///
    /// # Errors
    /// When the program cannot be started, there is no agent, or the daemon cannot be reached.
    pub async fn vm_exec(&self, name: &str, params: &ExecParams, wait: u32) -> Result<Exec, Error> {
        let socket = self.websocket(&format!("/v1/vms/{}/exec?wait={wait}", escaped(name))).await?;
        let (sink, stream) = socket.split();
        let mut exec = Exec { input: ExecInput { sink }, output: ExecOutput { stream } };
        let text = serde_json::to_string(params).map_err(|e| Error::malformed(e.to_string()))?;
        exec.input.send(Message::Text(text.into())).await?;
        match exec.output.next().await? {
            ExecEvent::Message(ExecMessage::Started) => Ok(exec),
            other => Err(Error::malformed(format!("before the program began came {other:?}"))),
        }
    }

    async fn websocket(&self, path: &str) -> Result<WebSocketStream<Stream>, Error> {
        let path = self.with_project(path);
        let stream = self.target.connect().await?;
        let mut request = Request::builder()
            .uri(format!("ws://{}{path}", self.target.host()))
            .header("host", self.target.host())
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", tungstenite::handshake::client::generate_key());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|e| Error::malformed(e.to_string()))?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            // The refusal may have come in pieces; asked for without a WebSocket, it comes whole.
            Err(tungstenite::Error::Http(_)) => {
                let (status, body) = self.send("GET", &path, &[], Vec::new()).await?;
                Err(match serde_json::from_slice::<ErrorBody>(&body) {
                    Ok(body) if body.error.code != ErrorCode::BadRequest => Error::refused(body.error),
                    _ => Error::malformed(format!("status {status} instead of a WebSocket")),
                })
            }
            Err(error) => Err(Error::malformed(format!("no WebSocket: {error}"))),
        }
    }
}

/// A program that runs in a guest. It is hung up on when this is dropped.
#[derive(Debug)]
pub struct Exec {
    /// What goes to it.
    pub input: ExecInput,
    /// What comes from it.
    pub output: ExecOutput,
}

/// What goes to a program. Input that no [`ExecMessage::InputTaken`] has acknowledged must not be more than
/// [`api::agent::STDIN_WINDOW`] if signals shall not wait.
#[derive(Debug)]
pub struct ExecInput {
    sink: SplitSink<WebSocketStream<Stream>, Message>,
}

/// What comes from a program. Somebody has to take it.
#[derive(Debug)]
pub struct ExecOutput {
    stream: SplitStream<WebSocketStream<Stream>>,
}

/// Something that a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote on its standard output or its terminal.
    Stdout(Vec<u8>),
    /// It wrote on its standard error.
    Stderr(Vec<u8>),
    /// It took input or ended.
    Message(ExecMessage),
}

impl ExecInput {
    async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.sink.send(message).await.map_err(|e| Error::malformed(format!("the program is gone: {e}")))
    }

    /// Sends input: at most 64 KiB at a time.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(EXEC_STDIN);
        message.extend_from_slice(bytes);
        self.send(Message::Binary(message.into())).await
    }

    /// Tells that there is no more input.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn close(&mut self) -> Result<(), Error> {
        self.write(&[]).await
    }

    /// Gives the terminal another size, or sends a signal.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn control(&mut self, control: &Control) -> Result<(), Error> {
        let text = serde_json::to_string(control).map_err(|e| Error::malformed(e.to_string()))?;
        self.send(Message::Text(text.into())).await
    }
}

impl ExecOutput {
    /// What the program does next. May be given up and called again.
    ///
    /// # Errors
    /// When it failed, or nobody knows how it ended.
    pub async fn next(&mut self) -> Result<ExecEvent, Error> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&EXEC_STDOUT, rest)) => return Ok(ExecEvent::Stdout(rest.to_vec())),
                    Some((&EXEC_STDERR, rest)) => return Ok(ExecEvent::Stderr(rest.to_vec())),
                    _ => return Err(Error::malformed("output of a stream that is not known")),
                },
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(ExecMessage::Failed { error }) => return Err(Error::of_guest(error)),
                    Ok(message) => return Ok(ExecEvent::Message(message)),
                    Err(error) => return Err(Error::malformed(error.to_string())),
                },
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    return Err(Error::malformed("the connection ended before the program"));
                }
                Some(Ok(_)) => {}
            }
        }
    }
}
