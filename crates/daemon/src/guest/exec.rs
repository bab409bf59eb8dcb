//! A program in a guest, over a WebSocket ([`api::v1::guest`] describes the messages).
//!
//! ```text
//!            text, binary                 frames
//! client ──────────────────> to_guest ────────────> agent
//!        <────────────────── from_guest <──────────
//! ```
//!
//! Two halves, each of which may wait without holding up the other: a program that does not read cannot keep
//! its output from coming, nor a client that does not take it the signals.

use super::frames::{self, Frames};
use super::{Ways, qemu};
use crate::Error;
use crate::http::right::Right;
use api::agent::frame::{CHUNK_LEN, FrameKind};
use api::agent::{Control, Event, ExecParams, Reply, Request, STDIN_WINDOW};
use api::v1::error::ErrorCode;
use api::v1::guest::{EXEC_STDERR, EXEC_STDIN, EXEC_STDOUT, ExecMessage};
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

/// Longest message that a client may send.
pub(crate) const MESSAGE_LEN_MAX: usize = 256 * 1024;
/// Input that is held for a program that does not read. A client that keeps to its window has never more here.
const PENDING_MAX: usize = 2 * STDIN_WINDOW;
/// How long a client has to say what shall run.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pauses between tries to reach an agent that is not up yet.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Connects to our agent; nothing if the guest has QEMU's instead. Tries again for so long.
async fn connect(
    socket: &Path,
    qemu: &Path,
    wait: Duration,
) -> Result<Option<tokio::net::UnixStream>, Error> {
    let deadline = tokio::time::Instant::now() + wait;
    let mut pause = RETRY.0;
    // Only where ours does not answer, and beside further tries: it takes its time to find that nobody is there.
    let mut looking = None;
    loop {
        let error = match frames::connect(socket).await {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) => error,
        };
        let late = tokio::time::Instant::now() + pause >= deadline || !socket.exists();
        let look = looking.get_or_insert_with(|| {
            let qemu = qemu.to_owned();
            tokio::task::spawn_blocking(move || qemu::answers(&qemu))
        });
        if late || look.is_finished() {
            let there = look.await.unwrap_or(false);
            looking = None;
            match there {
                true => return Ok(None),
                false if late => return Err(error),
                false => {}
            }
        }
        log::trace!("the agent behind {socket:?} is not there yet: {error}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Serves a client to its end, or to that of its right.
pub(crate) async fn serve(mut client: WebSocket, ways: &Ways, wait: Duration, right: &Right) {
    let opened = open(&mut client, ways, wait, right).await;
    let (mut sink, mut stream) = client.split();
    let outcome = match opened {
        Err(error) => Err(error),
        Ok(Opened::Done(last)) => Ok(last),
        Ok(Opened::Runs(frames, writer)) => {
            let window = Window::default();
            tokio::select! {
                outcome = from_guest(&mut sink, frames, &window) => outcome,
                () = to_guest(&mut stream, writer, &window) => return,
                // The agent hangs up on the program, because its connection ends.
                error = right.lost() => Err(error),
            }
        }
    };
    let last = outcome.unwrap_or_else(|error| ExecMessage::Failed { error: error.0 });
    let told = async {
        let _ = tell(&mut sink, &last).await;
        let _ = sink.send(Message::Close(None)).await;
    };
    if tokio::time::timeout(PATIENCE, told).await.is_err() {
        // It takes nothing.
        return;
    }
    // What the client has sent meanwhile is read: a connection that is closed over unread input may take with it
    // what the client has not read yet.
    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = tokio::time::timeout(PATIENCE, rest).await;
}

enum Opened {
    /// It runs by our agent.
    Runs(Frames<OwnedReadHalf>, OwnedWriteHalf),
    /// It ran by QEMU's agent.
    Done(ExecMessage),
}

/// Takes the first message and starts the program.
async fn open(client: &mut WebSocket, ways: &Ways, wait: Duration, right: &Right) -> Result<Opened, Error> {
    let bad = |message: &str| Error::new(ErrorCode::BadRequest, message);
    let first = tokio::time::timeout(PATIENCE, client.recv()).await;
    let Ok(Some(Ok(Message::Text(text)))) = first else {
        return Err(bad("the first message is not text that says what to run"));
    };
    let params: ExecParams = crate::http::extract::parse(text.as_bytes())?;
    let connected = tokio::select! {
        connected = connect(&ways.arnia, &ways.qemu, wait) => connected?,
        error = right.lost() => return Err(error),
    };
    let Some(stream) = connected else {
        tell_client(client, &ExecMessage::Started).await?;
        let (stdout, stderr, exit) = qemu::run(client, &ways.qemu, &params, right).await?;
        for (channel, bytes) in [(EXEC_STDOUT, stdout), (EXEC_STDERR, stderr)] {
            for piece in bytes.chunks(CHUNK_LEN) {
                client.send(output(channel, piece)).await.map_err(|_| bad("the client has gone"))?;
            }
        }
        return Ok(Opened::Done(ExecMessage::Exited(exit)));
    };
    let (reader, mut writer) = stream.into_split();
    let mut frames = Frames::new(reader);
    match frames::request(&mut frames, &mut writer, Request::Exec(params)).await? {
        Reply::Started => {}
        _ => return Err(frames::failed("it answered something else")),
    }
    tell_client(client, &ExecMessage::Started).await?;
    Ok(Opened::Runs(frames, writer))
}

pub(super) async fn tell_client(client: &mut WebSocket, message: &ExecMessage) -> Result<(), Error> {
    let text = serde_json::to_string(message).unwrap_or_default();
    let sent = client.send(Message::Text(text.into())).await;
    sent.map_err(|_| Error::new(ErrorCode::Cancelled, "the client has gone"))
}

async fn tell(sink: &mut SplitSink<WebSocket, Message>, message: &ExecMessage) -> Result<(), axum::Error> {
    let text = serde_json::to_string(message).unwrap_or_default();
    sink.send(Message::Text(text.into())).await
}

/// How much input the agent takes.
struct Window {
    open: Mutex<usize>,
    changed: Notify,
}

impl Default for Window {
    fn default() -> Window {
        Window { open: Mutex::new(STDIN_WINDOW), changed: Notify::new() }
    }
}

impl Window {
    /// Takes up to `wanted` bytes of it.
    fn take(&self, wanted: usize) -> usize {
        let mut open = crate::app::lock(&self.open);
        let taken = wanted.min(*open);
        *open -= taken;
        taken
    }

    /// Opens it again; false if more is opened than was taken.
    fn open(&self, bytes: u64) -> bool {
        let mut open = crate::app::lock(&self.open);
        match usize::try_from(bytes).ok().and_then(|bytes| open.checked_add(bytes)) {
            Some(more) if more <= STDIN_WINDOW => *open = more,
            _ => return false,
        }
        self.changed.notify_one();
        true
    }
}

/// Carries what the program writes. Ends with what is to be told last.
async fn from_guest(
    sink: &mut SplitSink<WebSocket, Message>,
    mut frames: Frames<impl AsyncRead + Unpin>,
    window: &Window,
) -> Result<ExecMessage, Error> {
    loop {
        let frame = frames.next().await.map_err(frames::failed)?;
        let frame = frame.ok_or_else(|| frames::failed("it hung up while the program ran"))?;
        let sent = match frame.kind {
            FrameKind::Stdout => sink.send(output(EXEC_STDOUT, &frame.payload)).await,
            FrameKind::Stderr => sink.send(output(EXEC_STDERR, &frame.payload)).await,
            FrameKind::Event => match serde_json::from_slice(&frame.payload) {
                Ok(Event::Exited(exit)) => return Ok(ExecMessage::Exited(exit)),
                Ok(Event::InputTaken { bytes }) if window.open(bytes) => {
                    tell(sink, &ExecMessage::InputTaken { bytes }).await
                }
                Ok(Event::InputTaken { .. }) => {
                    return Err(frames::failed("it took more input than there was"));
                }
                Err(error) => return Err(frames::failed(error)),
            },
            _ => return Err(frames::failed("it sent what does not belong here")),
        };
        if sent.is_err() {
            return Err(Error::new(ErrorCode::Cancelled, "the client has gone"));
        }
    }
}

fn output(channel: u8, payload: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(1 + payload.len());
    bytes.push(channel);
    bytes.extend_from_slice(payload);
    Message::Binary(bytes.into())
}

/// Carries what the client sends. Ends when the client has gone, or sent what it must not.
async fn to_guest(client: &mut SplitStream<WebSocket>, mut agent: impl AsyncWrite + Unpin, window: &Window) {
    let mut pending = Pending::default();
    loop {
        if pending.flush(&mut agent, window).await.is_err() {
            // The other half sees why.
            return std::future::pending().await;
        }
        let message = tokio::select! {
            message = client.next(), if pending.len < PENDING_MAX => message,
            () = window.changed.notified(), if pending.len > 0 => continue,
        };
        match message {
            Some(Ok(Message::Binary(mut bytes))) if bytes.first() == Some(&EXEC_STDIN) => {
                pending.push(bytes.split_off(1));
            }
            Some(Ok(Message::Text(text))) => {
                let Ok(control) = serde_json::from_str::<Control>(&text) else { return };
                let payload = serde_json::to_vec(&control).unwrap_or_default();
                if frames::send(&mut agent, FrameKind::Control, &payload).await.is_err() {
                    return std::future::pending().await;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_) | Message::Close(_)) | Err(_)) | None => return,
        }
    }
}

/// Input that the program has not taken yet.
#[derive(Default)]
struct Pending {
    pieces: VecDeque<Bytes>,
    len: usize,
    /// The client has said that there is no more.
    ended: bool,
    /// The agent was told so.
    end_sent: bool,
}

impl Pending {
    fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            self.ended = true;
        } else if !self.ended {
            self.len += bytes.len();
            self.pieces.push_back(bytes);
        }
    }

    /// Sends as much as the window lets through.
    async fn flush(&mut self, agent: &mut (impl AsyncWrite + Unpin), window: &Window) -> std::io::Result<()> {
        while let Some(piece) = self.pieces.front_mut() {
            let count = window.take(piece.len().min(CHUNK_LEN));
            if count == 0 {
                return Ok(());
            }
            frames::send(agent, FrameKind::Stdin, &piece.split_to(count)).await?;
            self.len -= count;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        if self.ended && !self.end_sent {
            self.end_sent = true;
            frames::send(agent, FrameKind::Stdin, &[]).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_waits_for_the_window_and_then_all_of_it_comes() {
        let window = Window::default();
        let mut pending = Pending::default();
        pending.push(Bytes::from(vec![7; STDIN_WINDOW + 10]));
        pending.push(Bytes::new());
        pending.push(Bytes::from_static(b"after the end"));
        let mut sent = Vec::new();
        pending.flush(&mut sent, &window).await.unwrap();
        assert_eq!(pending.len, 10);
        assert!(window.open(4) && !window.open(STDIN_WINDOW as u64));
        pending.flush(&mut sent, &window).await.unwrap();
        assert_eq!(pending.len, 6);
        assert!(window.open(100));
        pending.flush(&mut sent, &window).await.unwrap();
        let mut frames = Frames::new(&sent[..]);
        let (mut input, mut ends) = (0, 0);
        while let Some(frame) = frames.next().await.unwrap() {
            assert_eq!(frame.kind, FrameKind::Stdin);
            input += frame.payload.len();
            ends += usize::from(frame.payload.is_empty());
        }
        assert_eq!((input, ends), (STDIN_WINDOW + 10, 1));
    }
}
