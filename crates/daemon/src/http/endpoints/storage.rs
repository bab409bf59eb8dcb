//! Pools and volumes.

use super::{ListParams, ProjectParam};
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Part, Path, Query, Scope};
use crate::http::respond::page;
use api::v1::error::ErrorBody;
use api::v1::page::Page;
use api::v1::storage::{Pool, PoolParams, Volume, VolumeParams};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;

/// Creates an empty volume.
#[utoipa::path(post, path = "/v1/volumes", operation_id = "volume_create", tag = "arnia", request_body = VolumeParams,
    params(ProjectParam), responses((status = 201, body = Volume), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn volume_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    Body(params): Body<VolumeParams>,
) -> Result<(StatusCode, Json<Volume>), Error> {
    Ok((StatusCode::CREATED, Json(app.volume_create(&scope.project, params)?)))
}

/// Lists volumes by name.
#[utoipa::path(get, path = "/v1/volumes", operation_id = "volume_list", tag = "arnia",
    params(ProjectParam, ListParams),
    responses((status = 200, body = Page<Volume>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn volume_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Query(params): Query<ListParams>,
) -> Result<Json<Page<Volume>>, Error> {
    let part = Part::new(params.into())?;
    let volumes = app.volumes(&scope.project, &part.after, part.limit + 1)?;
    Ok(page(volumes, part.limit, |volume| volume.name.clone()))
}

/// Shows a volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}", operation_id = "volume_view", tag = "arnia",
    params(ProjectParam, ("volume" = String, Path, description = "Its name")),
    responses((status = 200, body = Volume), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn volume_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Json<Volume>, Error> {
    Ok(Json(app.volume(&scope.project, &name)?))
}

/// Removes a volume that is no machine's disk, with all that is on it.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", operation_id = "volume_delete", tag = "arnia",
    params(ProjectParam, ("volume" = String, Path, description = "Its name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn volume_delete(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.volume_delete(&scope.project, &name)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a folder of the host a pool.
#[utoipa::path(post, path = "/v1/pools", operation_id = "pool_create", tag = "arnia", request_body = PoolParams,
    responses((status = 201, body = Pool), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn pool_create(
    State(app): State<Arc<App>>,
    Body(params): Body<PoolParams>,
) -> Result<(StatusCode, Json<Pool>), Error> {
    Ok((StatusCode::CREATED, Json(app.pool_create(params)?)))
}

/// Lists pools by name.
#[utoipa::path(get, path = "/v1/pools", operation_id = "pool_list", tag = "arnia",
    responses((status = 200, body = Page<Pool>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn pool_list(State(app): State<Arc<App>>) -> Result<Json<Page<Pool>>, Error> {
    Ok(Json(Page { items: app.pools()?, next: None }))
}

/// Forgets a pool that holds no volumes. Its folder stays.
#[utoipa::path(delete, path = "/v1/pools/{pool}", operation_id = "pool_delete", tag = "arnia",
    params(("pool" = String, Path, description = "Its name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn pool_delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.pool_delete(&name)?;
    Ok(StatusCode::NO_CONTENT)
}
