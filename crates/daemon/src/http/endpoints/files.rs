//! Files of guests.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::guest::Ways;
use crate::guest::files::{self, Kind};
use crate::http::extract::{Path, Query, Scope};
use agent_client::FileAttributes;
use api::agent::{Attributes, Entry};
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::guest::TAR;
use api::v1::page::Page;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PathQuery {
    /// Absolute path in the guest.
    path: String,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ViewQuery {
    /// Absolute path in the guest.
    path: String,
    /// Whether a symbolic link at its end is followed.
    #[serde(default)]
    follow: bool,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WriteQuery {
    /// Absolute path in the guest.
    path: String,
    /// Permission bits, in decimal digits. Default: those of the file that is there, or 0644.
    #[param(minimum = 0, maximum = 4095)]
    #[serde(default)]
    mode: Option<u32>,
    /// The owner's user ID. Default: that of the file that is there, or root's.
    #[serde(default)]
    uid: Option<u32>,
    /// The owner's group ID.
    #[serde(default)]
    gid: Option<u32>,
}

/// Reads a file of the guest; of a folder, a tar archive.
#[utoipa::path(get, path = "/v1/vms/{vm}/files", operation_id = "file_read", tag = "arnia",
    params(ProjectParam, PathQuery, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "The file (application/octet-stream) or folder (application/x-tar)",
            body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(crate) async fn file_read(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<PathQuery>,
) -> Result<Response, Error> {
    let vm = app.vm(&scope, &name)?;
    files::check_path(&query.path)?;
    let (outlet, outgoing) = files::outlet();
    drop(
        app.guest_thread(&vm, move |ways| match ways.files() {
            Ok(agent) => files::send_out(&*agent, &query.path, outlet),
            Err(error) => outlet.fail(error.into()),
        })
        .await?,
    );
    let (kind, body) = outgoing.body(scope.right).await?;
    let content_type = match kind {
        Kind::File => "application/octet-stream",
        Kind::Folder => TAR,
    };
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

/// Writes a file of the guest, whole or not at all. An archive (`Content-Type: application/x-tar`) is unpacked into the
/// folder `path`, file by file.
#[utoipa::path(put, path = "/v1/vms/{vm}/files", operation_id = "file_write", tag = "arnia",
    params(ProjectParam, WriteQuery, ("vm" = String, Path, description = "Name or identity")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(crate) async fn file_write(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Error> {
    let vm = app.vm(&scope, &name)?;
    files::check_path(&query.path)?;
    let archive = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == TAR);
    if query.mode.is_some_and(|mode| mode > 0o7777) {
        return Err(Error::new(ErrorCode::BadRequest, "permission bits are 0 to 4095 (07777)"));
    }
    let (mut inlet, lost) = files::inlet(body, scope.right);
    let written = app.guest_thread(&vm, move |ways| {
        let agent = ways.files()?;
        match archive {
            true => files::unpack(&*agent, &query.path, inlet),
            false => {
                let attributes = FileAttributes { mode: query.mode, uid: query.uid, gid: query.gid };
                Ok(agent.write_file(&query.path, &attributes, &mut inlet)?)
            }
        }
    });
    let written = written.await?.await.map_err(|e| Error::internal("the file cannot be written", e))?;
    written.map_err(|error| lost.or(error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells what is at a path of the guest.
#[utoipa::path(get, path = "/v1/vms/{vm}/files/attributes", operation_id = "file_view", tag = "arnia",
    params(ProjectParam, ViewQuery, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Attributes), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(crate) async fn file_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<ViewQuery>,
) -> Result<Json<Attributes>, Error> {
    let vm = app.vm(&scope, &name)?;
    files::check_path(&query.path)?;
    let view = move |ways: Ways| ways.files()?.stat(&query.path, query.follow);
    Ok(Json(app.guest_answer(&vm, view).await?))
}

/// Lists a folder of the guest, by name.
#[utoipa::path(get, path = "/v1/vms/{vm}/files/entries", operation_id = "file_list", tag = "arnia",
    params(ProjectParam, PathQuery, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Page<Entry>), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(crate) async fn file_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(query): Query<PathQuery>,
) -> Result<Json<Page<Entry>>, Error> {
    let vm = app.vm(&scope, &name)?;
    files::check_path(&query.path)?;
    let items = app.guest_answer(&vm, move |ways| ways.files()?.list(&query.path)).await?;
    Ok(Json(Page { items, next: None }))
}
