//! Virtual machines.

use super::{ListParams, ProjectParam};
use crate::Error;
use crate::app::{App, Request};
use crate::http::extract::{Body, Part, Path, Query, Scope, expected_revision, idempotency_key, patched};
use crate::http::respond::{Accepted, Tagged, page};
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::limits::ResizeParams;
use api::v1::operation::Operation;
use api::v1::page::Page;
use api::v1::vm::{RenameParams, StopParams, Vm, VmMetrics, VmParams};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use store::VmRecord;

impl App {
    pub(super) fn vm(&self, scope: &Scope, name: &str) -> Result<VmRecord, Error> {
        let found = self.read(|records| Ok(records.vm(&scope.project, name)?));
        found.map_err(|error| match error.code() {
            ErrorCode::NotFound => error.with_remedy("see `arnia ls` for those that there are"),
            _ => error,
        })
    }
}

/// Creates a machine, and starts it if asked for.
#[utoipa::path(post, path = "/v1/vms", operation_id = "vm_create", tag = "arnia", request_body = VmParams,
    params(ProjectParam, ("Idempotency-Key" = Option<String>, Header, description = "A repeated request with the same key creates nothing again")),
    responses((status = 201, body = Vm), (status = 202, body = Operation, description = "It is being started"),
        (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    headers: HeaderMap,
    Body(params): Body<VmParams>,
) -> Result<Response, Error> {
    let key = idempotency_key(&headers)?;
    let created = app.vm_create(&scope.caller, &scope.project, params, key.as_deref())?;
    Ok(match created.operation {
        Some(operation) => Accepted(operation).into_response(),
        None => Tagged(StatusCode::CREATED, created.vm.revision, created.vm).into_response(),
    })
}

/// Lists machines by name.
#[utoipa::path(get, path = "/v1/vms", operation_id = "vm_list", tag = "arnia", params(ProjectParam, ListParams),
    responses((status = 200, body = Page<Vm>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Query(params): Query<ListParams>,
) -> Result<Json<Page<Vm>>, Error> {
    let part = Part::new(params.into())?;
    let vms = app.read(|records| Ok(records.vms(&scope.project, &part.after, part.limit + 1)?))?;
    let views: Vec<Vm> = vms.into_iter().map(|vm| app.vm_view(vm)).collect();
    Ok(page(views, part.limit, |vm| vm.name.clone()))
}

/// Shows a machine.
#[utoipa::path(get, path = "/v1/vms/{vm}", operation_id = "vm_view", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Tagged<Vm>, Error> {
    let vm = app.vm_view(app.vm(&scope, &name)?);
    Ok(Tagged(StatusCode::OK, vm.revision, vm))
}

/// Changes a machine's configuration by a JSON merge patch (RFC 7396). A machine that runs has the change when it
/// is started the next time, and changed limits at once.
#[utoipa::path(patch, path = "/v1/vms/{vm}", operation_id = "vm_update", tag = "arnia",
    request_body(content = serde_json::Value, content_type = "application/merge-patch+json"),
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_update(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(patch): Body<serde_json::Value>,
) -> Result<Tagged<Vm>, Error> {
    let expected = expected_revision(&headers)?;
    let vm = app.vm(&scope, &name)?;
    let config = patched("machine", &vm.config, patch)?;
    let vm = app.vm_update(&scope.caller, &vm, config, expected).await?;
    Ok(Tagged(StatusCode::OK, vm.revision, vm))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteParams {
    /// End it first if it runs.
    #[serde(default)]
    force: bool,
}

/// Removes a machine. Its volumes stay.
#[utoipa::path(delete, path = "/v1/vms/{vm}", operation_id = "vm_delete", tag = "arnia",
    params(ProjectParam, DeleteParams, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_delete(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(params): Query<DeleteParams>,
) -> Result<StatusCode, Error> {
    let vm = app.vm(&scope, &name)?;
    app.vm_delete(&vm, params.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a machine. One that runs already is left as it is.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", operation_id = "vm_start", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_start(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Accepted(app.vm_operation(&scope.caller, &vm, &Request::VmStart {})?))
}

/// Stops a machine: presses its power button, or ends it at once.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", operation_id = "vm_stop", tag = "arnia", request_body = StopParams,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_stop(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(params): Body<StopParams>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Accepted(app.vm_operation(&scope.caller, &vm, &Request::VmStop { params })?))
}

/// Stops a machine and starts it again, with its newest configuration.
#[utoipa::path(post, path = "/v1/vms/{vm}/restart", operation_id = "vm_restart", tag = "arnia", request_body = StopParams,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_restart(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(params): Body<StopParams>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    let request = Request::VmRestart { params, started: vm.started };
    Ok(Accepted(app.vm_operation(&scope.caller, &vm, &request)?))
}

/// Makes a machine stand still.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", operation_id = "vm_pause", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_pause(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Tagged<Vm>, Error> {
    let vm = app.vm(&scope, &name)?;
    app.pause(&vm).await?;
    Ok(Tagged(StatusCode::OK, vm.revision, app.vm_view(vm)))
}

/// Lets a machine go on.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", operation_id = "vm_resume", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_resume(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Tagged<Vm>, Error> {
    let vm = app.vm(&scope, &name)?;
    app.resume(&vm).await?;
    Ok(Tagged(StatusCode::OK, vm.revision, app.vm_view(vm)))
}

/// Gives a machine another name.
#[utoipa::path(post, path = "/v1/vms/{vm}/rename", operation_id = "vm_rename", tag = "arnia", request_body = RenameParams,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_rename(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(params): Body<RenameParams>,
) -> Result<Tagged<Vm>, Error> {
    let expected = expected_revision(&headers)?;
    let vm = app.vm_rename(&app.vm(&scope, &name)?, &params.name, expected)?;
    Ok(Tagged(StatusCode::OK, vm.revision, vm))
}

/// Gives a machine other sizes: of its first disk at once, of processors and memory from its next start on.
#[utoipa::path(post, path = "/v1/vms/{vm}/resize", operation_id = "vm_resize", tag = "arnia", request_body = ResizeParams,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_resize(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(params): Body<ResizeParams>,
) -> Result<Tagged<Vm>, Error> {
    let vm = app.vm_resize(&scope.caller, &app.vm(&scope, &name)?, &params).await?;
    Ok(Tagged(StatusCode::OK, vm.revision, vm))
}

/// Which log.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogKind {
    /// What the guest wrote to its serial port, over all its starts.
    #[default]
    Console,
    /// What the machine's process says, since its last start.
    Worker,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogParams {
    /// Which log.
    #[serde(default)]
    #[param(inline)]
    kind: LogKind,
    /// Only the last lines, so many; all when absent.
    #[serde(default)]
    lines: Option<u32>,
}

/// What is sent of a log at most.
const LOG_LEN_MAX: u64 = 4 << 20;

/// Gives a machine's log as text.
#[utoipa::path(get, path = "/v1/vms/{vm}/log", operation_id = "vm_log", tag = "arnia",
    params(ProjectParam, LogParams, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_log(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Query(params): Query<LogParams>,
) -> Result<Response, Error> {
    let vm = app.vm(&scope, &name)?;
    let path = match params.kind {
        LogKind::Console => app.console_log(&vm.id),
        LogKind::Worker => app.worker_log(&vm.id),
    };
    let mut bytes = match read_end(&path) {
        Ok(bytes) => bytes,
        // It has never been started.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::internal("the log cannot be read", e)),
    };
    if let Some(lines) = params.lines {
        let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        let from = match lines {
            0 => bytes.len(),
            lines => breaks.map(|(at, _)| at + 1).nth(lines as usize - 1).unwrap_or(0),
        };
        bytes.drain(..from);
    }
    Ok(([("content-type", "text/plain; charset=utf-8")], bytes).into_response())
}

fn read_end(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_LEN_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Tells what a machine uses of the host.
#[utoipa::path(get, path = "/v1/vms/{vm}/metrics", operation_id = "vm_metrics", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = VmMetrics), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_metrics(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Json<VmMetrics>, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Json(app.vm_metrics(&vm).await?))
}
