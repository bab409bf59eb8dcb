//! Ports of the host that lead into guests.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Path, Scope};
use api::v1::error::ErrorBody;
use api::v1::network::Port;
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;

/// Lists the ports of the host that lead into a machine. Those that the host has chosen are listed as they are while the
/// machine runs.
#[utoipa::path(get, path = "/v1/vms/{vm}/ports", operation_id = "port_list", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 200, body = Page<Port>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn port_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Json<Page<Port>>, Error> {
    let vm = app.vm(&scope, &name)?;
    Ok(Json(Page { items: app.ports_now(&vm).await, next: None }))
}

/// Lets a port of the host lead into a machine: at once if it runs, and whenever it runs from now on. With port 0 the
/// host of a machine that runs chooses one.
#[utoipa::path(post, path = "/v1/vms/{vm}/ports", operation_id = "port_create", tag = "arnia", request_body = Port,
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity")),
    responses((status = 201, body = Port), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn port_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
    Body(port): Body<Port>,
) -> Result<(StatusCode, Json<Port>), Error> {
    let vm = app.vm(&scope, &name)?;
    Ok((StatusCode::CREATED, Json(app.port_add(&vm, port).await?)))
}

/// Closes a port. Connections through it go on.
#[utoipa::path(delete, path = "/v1/vms/{vm}/ports/{port}", operation_id = "port_delete", tag = "arnia",
    params(ProjectParam, ("vm" = String, Path, description = "Name or identity"),
        ("port" = String, Path, description = "Where the host listens: `[ADDRESS:]PORT[/tcp|/udp]`; or the whole rule")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn port_delete(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path((name, port)): Path<(String, String)>,
) -> Result<StatusCode, Error> {
    let vm = app.vm(&scope, &name)?;
    app.port_remove(&vm, &port).await?;
    Ok(StatusCode::NO_CONTENT)
}
