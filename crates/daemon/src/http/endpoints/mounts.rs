//! Folders of the host that guests see.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Path, Query, Scope};
use api::v1::error::ErrorBody;
use api::v1::mount::{Mount, MountConfig};
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;

/// Lists the folders of the host that a machine is shown.
#[utoipa::path(get, path = "/v1/vms/{vm}/mounts", operation_id = "mount_list", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Page<Mount>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn mount_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Json<Page<Mount>>, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Json(Page { items: app.mount_list(&vm), next: None }))
}

/// Shows a guest a folder of the host: at once if the machine runs, and whenever it runs from now on. Only for admins.
#[utoipa::path(post, path = "/v1/vms/{vm}/mounts", operation_id = "mount_create", tag = "arnia",
    request_body = MountConfig,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 201, body = Mount), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(crate) async fn mount_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(mount): Body<MountConfig>,
) -> Result<(StatusCode, Json<Mount>), Error> {
    let vm = app.vm(&scope, &name)?;
    Ok((StatusCode::CREATED, Json(app.mount_add(&scope.caller, &vm, mount).await?)))
}

/// How a folder is taken away.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveParams {
    /// Although somebody in the guest uses it.
    #[serde(default)]
    force: bool,
}

/// Shows a guest a folder no more.
#[utoipa::path(delete, path = "/v1/vms/{vm}/mounts/{target}", operation_id = "mount_delete", tag = "arnia",
    params(ProjectParam, RemoveParams, ("vm" = String, Path, description = "Name or identity"),
        ("target" = String, Path, description = "Where the guest has it, or its name")),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(crate) async fn mount_delete(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path((name, target)): Path<(String, String)>,
    Query(params): Query<RemoveParams>,
) -> Result<StatusCode, Error> {
    let vm = app.vm(&scope, &name)?;
    app.mount_remove(&vm, &target, params.force).await?;
    Ok(StatusCode::NO_CONTENT)
}
