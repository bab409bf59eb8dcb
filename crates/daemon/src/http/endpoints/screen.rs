//! The screen of a machine and its keyboard.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Path, Scope};
use api::v1::error::ErrorBody;
use api::v1::screen::Keys;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use std::sync::Arc;

/// Takes a picture of the screen.
#[utoipa::path(get, path = "/v1/vms/{vm}/screenshot", operation_id = "vm_screenshot", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "The picture", body = Vec<u8>, content_type = "image/png"),
        (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_screenshot(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let vm = app.vm(&scope, &name)?;
    let png = app.screenshot(&vm).await?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], png))
}

/// Reads the screen of a text mode.
#[utoipa::path(get, path = "/v1/vms/{vm}/screen-text", operation_id = "vm_screen_text", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "Its lines", body = String, content_type = "text/plain"),
        (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_screen_text(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(([(header::CACHE_CONTROL, "no-store")], app.screen_text(&vm).await?))
}

/// Presses keys. Answered before the guest has read them.
#[utoipa::path(post, path = "/v1/vms/{vm}/keys", operation_id = "vm_keys", tag = "arnia", request_body = Keys,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_keys(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(keys): Body<Keys>,
) -> Result<StatusCode, Error> {
    let vm = app.vm(&scope, &name)?;
    app.keys(&vm, keys).await?;
    Ok(StatusCode::NO_CONTENT)
}
