//! Snapshots of machines, clones, and suspending.

use super::ProjectParam;
use crate::Error;
use crate::app::{App, Request};
use crate::http::extract::{Body, Path, Scope};
use crate::http::respond::Accepted;
use crate::util;
use api::v1::error::ErrorBody;
use api::v1::operation::Operation;
use api::v1::page::Page;
use api::v1::snapshot::{CloneParams, Snapshot, SnapshotParams};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;

/// Makes a snapshot of a machine that runs or is paused. The guest goes on meanwhile.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", operation_id = "snapshot_create", tag = "arnia",
    request_body = SnapshotParams,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn snapshot_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(params): Body<SnapshotParams>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    app.check_snapshot(&vm, &params)?;
    let request = Request::SnapshotCreate { id: util::uuid(), params };
    Ok(Accepted(app.vm_operation(&scope.caller, &vm, &request)?))
}

/// Lists the snapshots of a machine, the oldest first.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots", operation_id = "snapshot_list", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Page<Snapshot>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn snapshot_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Json<Page<Snapshot>>, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Json(Page { items: app.snapshots(&vm)?, next: None }))
}

/// Shows a snapshot.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots/{snapshot}", operation_id = "snapshot_view", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity"),
        ("snapshot" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Snapshot), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn snapshot_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path((name, snapshot)): Path<(String, String)>,
) -> Result<Json<Snapshot>, Error> {
    Ok(Json(app.snapshot(&app.vm(&scope, &name)?, &snapshot)?))
}

/// Removes a snapshot. Machines that were made of it go on.
#[utoipa::path(delete, path = "/v1/vms/{vm}/snapshots/{snapshot}", operation_id = "snapshot_delete", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity"),
        ("snapshot" = String, Path, description = "Name or identity")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn snapshot_delete(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path((name, snapshot)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    app.snapshot_delete(&app.vm(&scope, &name)?, &snapshot).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a machine go on from one of its snapshots: memory, disks, configuration. What it is now is lost.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots/{snapshot}/restore", operation_id = "snapshot_restore",
    tag = "arnia", params(ProjectParam, ("vm" = String, Path, description = "Name or identity"),
        ("snapshot" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn snapshot_restore(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path((name, snapshot)): Path<(String, String)>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    app.check_restorable(&vm, &snapshot)?;
    Ok(Accepted(app.vm_operation(&scope.caller, &vm, &Request::SnapshotRestore { snapshot })?))
}

/// Makes machines that begin as copies of a machine, as it is now or was at a snapshot; each is another machine. Of
/// one that runs, or of a snapshot, they run at once. They have none of the host's ports.
#[utoipa::path(post, path = "/v1/vms/{vm}/clone", operation_id = "vm_clone", tag = "arnia", request_body = CloneParams,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_clone(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(params): Body<CloneParams>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Accepted(app.clone_request(&scope.caller, &vm, params)?))
}

/// Saves a machine's memory on the host's disk and ends its process. A start lets it go on from there; a stop by force
/// gives up what was saved.
#[utoipa::path(post, path = "/v1/vms/{vm}/suspend", operation_id = "vm_suspend", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn vm_suspend(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Accepted, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Accepted(app.vm_operation(&scope.caller, &vm, &Request::VmSuspend {})?))
}
