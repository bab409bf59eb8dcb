//! Networks.

use super::{ListParams, ProjectParam};
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Part, Path, Query, Scope, expected_revision, patched};
use crate::http::respond::{Tagged, page};
use api::v1::error::ErrorBody;
use api::v1::network::{Network, NetworkParams};
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use std::sync::Arc;

/// Creates a network.
#[utoipa::path(post, path = "/v1/networks", operation_id = "network_create", tag = "arnia",
    request_body = NetworkParams, params(ProjectParam),
    responses((status = 201, body = Network), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn network_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    Body(params): Body<NetworkParams>,
) -> Result<Tagged<Network>, Error> {
    let network = app.network_create(&scope.project, params)?;
    Ok(Tagged(StatusCode::CREATED, network.revision, network))
}

/// Lists networks by name.
#[utoipa::path(get, path = "/v1/networks", operation_id = "network_list", tag = "arnia",
    params(ProjectParam, ListParams),
    responses((status = 200, body = Page<Network>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn network_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Query(params): Query<ListParams>,
) -> Result<Json<Page<Network>>, Error> {
    let part = Part::new(params.into())?;
    let networks = app.networks(&scope.project, &part.after, part.limit + 1)?;
    Ok(page(networks, part.limit, |network| network.name.clone()))
}

/// Shows a network and the cards in it.
#[utoipa::path(get, path = "/v1/networks/{network}", operation_id = "network_view", tag = "arnia",
    params(ProjectParam, ("network" = String, Path, description = "Its name")),
    responses((status = 200, body = Network), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn network_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Tagged<Network>, Error> {
    let network = app.network(&scope.project, &name)?;
    Ok(Tagged(StatusCode::OK, network.revision, network))
}

/// Changes a network by a JSON merge patch (RFC 7396) of its configuration. While it has cards, only the description
/// can change.
#[utoipa::path(patch, path = "/v1/networks/{network}", operation_id = "network_update", tag = "arnia",
    request_body(content = serde_json::Value, content_type = "application/merge-patch+json"),
    params(ProjectParam, ("network" = String, Path, description = "Its name"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag")),
    responses((status = 200, body = Network), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn network_update(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(patch): Body<serde_json::Value>,
) -> Result<Tagged<Network>, Error> {
    let expected = expected_revision(&headers)?;
    let change = |config| patched("network", &config, patch);
    let network = app.network_update(&scope.project, &name, change, expected)?;
    Ok(Tagged(StatusCode::OK, network.revision, network))
}

/// Removes a network that no machine has a card in.
#[utoipa::path(delete, path = "/v1/networks/{network}", operation_id = "network_delete", tag = "arnia",
    params(ProjectParam, ("network" = String, Path, description = "Its name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn network_delete(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.network_delete(&scope.project, &name)?;
    Ok(StatusCode::NO_CONTENT)
}
