//! The console: the machine's serial port over a WebSocket.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Path, Scope};
use api::v1::error::{ErrorBody, ErrorCode};
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest message that a client may send: nobody types more at once.
const MESSAGE_LEN_MAX: usize = 64 * 1024;

/// Connects to a machine's serial port: binary messages carry what the guest writes and what is typed. First comes
/// what the guest wrote last.
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
    Ok(upgrade.max_message_size(MESSAGE_LEN_MAX).on_upgrade(move |socket| relay(socket, console)))
}

/// Carries bytes both ways until either side ends.
async fn relay(mut socket: WebSocket, console: UnixStream) {
    let (mut from_guest, mut to_guest) = console.into_split();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let bytes = buffer[..count].to_vec();
                    if socket.send(Message::Binary(bytes.into())).await.is_err() {
                        return;
                    }
                }
            },
            message = socket.recv() => {
                let typed = match &message {
                    Some(Ok(Message::Binary(bytes))) => &bytes[..],
                    Some(Ok(Message::Text(text))) => text.as_bytes(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => &[],
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if to_guest.write_all(typed).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}
