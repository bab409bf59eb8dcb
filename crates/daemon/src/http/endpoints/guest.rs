//! What goes on inside a guest: what it is, and programs in it.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::guest::exec;
use crate::http::extract::{Path, Query, Scope};
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::guest::{Guest, WAIT_SECONDS_MAX};
use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Tells what the guest's agent says of it: system, name, addresses.
#[utoipa::path(get, path = "/v1/vms/{vm}/guest", operation_id = "vm_guest", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Guest), (status = "4XX", body = ErrorBody),
        (status = 502, description = "The guest failed", body = ErrorBody),
        (status = 503, description = "The guest has no agent that answers", body = ErrorBody),
        (status = 504, description = "The guest does not answer in time", body = ErrorBody)))]
pub(crate) async fn vm_guest(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Json<Guest>, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Json(app.guest_view(&vm).await?))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExecQuery {
    /// Seconds to wait for an agent that does not answer yet: 0 to 600, 0 by default.
    #[param(minimum = 0, maximum = 600)]
    #[serde(default)]
    wait: u32,
}

/// Runs a program in the guest, over a WebSocket. The client's first message is text: an `ExecParams`. The daemon
/// answers by text, `ExecMessage`s: `started`, or `failed` with an error. Then binary messages carry the streams,
/// each with one byte in front: 0 standard input (nothing behind it: its end), 1 standard output, 2 standard error;
/// the client may send `Control` as text: a window size or a signal. The last message is `exited` or `failed`.
#[utoipa::path(get, path = "/v1/vms/{vm}/exec", operation_id = "vm_exec", tag = "arnia",
    params(ProjectParam, ExecQuery, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 101, description = "The WebSocket is open"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_exec(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<ExecQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Error> {
    let vm = app.vm(&scope, &name)?;
    if query.wait > WAIT_SECONDS_MAX {
        return Err(Error::new(
            ErrorCode::BadRequest,
            format!("waiting has a limit of {WAIT_SECONDS_MAX} s"),
        ));
    }
    // Before the WebSocket is looked at: whoever asks without one hears the same reasons.
    let (place, ways) = app.guest_place(&vm).await?;
    let upgrade = upgrade
        .map_err(|e| Error::new(ErrorCode::BadRequest, "this is a WebSocket").with_cause(e.body_text()))?;
    Ok(upgrade.max_message_size(exec::MESSAGE_LEN_MAX).on_upgrade(async move |client| {
        exec::serve(client, &ways, Duration::from_secs(query.wait.into()), &scope.right).await;
        drop(place);
    }))
}
