//! The console: the machine's serial port over a WebSocket.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Path, Scope};
use crate::http::right::Right;
use api::v1::error::{ErrorBody, ErrorCode};
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest message that a client may send: nobody types more at once.
const MESSAGE_LEN_MAX: usize = 64 * 1024;
/// How long a client may take to hear that it is over.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a machine's serial port: binary messages carry what the guest writes and what is typed. First comes
/// what the guest wrote last. When the caller may not any more, the WebSocket is closed with status 1008.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", operation_id = "vm_console", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 101, description = "The WebSocket is open"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_console(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Error> {
    let vm = app.vm(&scope, &name)?;
    // Before the WebSocket is looked at: whoever asks without one hears the same reasons.
    let path = app.console(&vm)?;
    let upgrade = upgrade
        .map_err(|e| Error::new(ErrorCode::BadRequest, "this is a WebSocket").with_cause(e.body_text()))?;
    let console = UnixStream::connect(path).await.map_err(|e| {
        Error::new(ErrorCode::Unavailable, "the console cannot be reached")
            .with_cause(e)
            .with_remedy("the machine may just be starting or ending: try again")
    })?;
    Ok(upgrade
        .max_message_size(MESSAGE_LEN_MAX)
        .on_upgrade(move |socket| relay(socket, console, scope.right)))
}

/// Carries bytes both ways until either side ends, or the right to it.
async fn relay(mut socket: WebSocket, console: UnixStream, right: Right) {
    let lost = right.lost();
    tokio::pin!(lost);
    let last = tokio::select! {
        last = carry(&mut socket, console) => last,
        error = &mut lost => Some(closing(&error)),
    };
    if let Some(last) = last {
        // A client that takes nothing is not waited for.
        let _ = tokio::time::timeout(LAST_PATIENCE, socket.send(last)).await;
    }
}

/// Returns what the client is told last, if it is still there.
async fn carry(socket: &mut WebSocket, console: UnixStream) -> Option<Message> {
    let (mut from_guest, mut to_guest) = console.into_split();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let bytes = buffer[..count].to_vec();
                    if socket.send(Message::Binary(bytes.into())).await.is_err() {
                        return None;
                    }
                }
            },
            message = socket.recv() => {
                let typed = match &message {
                    Some(Ok(Message::Binary(bytes))) => &bytes[..],
                    Some(Ok(Message::Text(text))) => text.as_bytes(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => &[],
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                };
                if to_guest.write_all(typed).await.is_err() {
                    break;
                }
            }
        }
    }
    Some(Message::Close(None))
}

/// Tells that the caller may not any more, and why. A reason has at most 123 bytes (RFC 6455, 5.5).
fn closing(error: &Error) -> Message {
    let mut reason = error.to_string();
    reason.truncate(reason.floor_char_boundary(123));
    Message::Close(Some(CloseFrame { code: close_code::POLICY, reason: reason.into() }))
}
