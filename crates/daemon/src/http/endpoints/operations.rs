//! Operations.

use super::{ListParams, ProjectParam};
use crate::Error;
use crate::app::App;
use crate::http::extract::{Part, Path, Query, Scope};
use crate::http::respond::page;
use api::v1::access::Role;
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::operation::Operation;
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the end of an operation within one request.
const WAIT_MAX: u32 = 60;

/// Lists operations, the newest first.
#[utoipa::path(get, path = "/v1/operations", operation_id = "operation_list", tag = "arnia",
    params(ProjectParam, ListParams),
    responses((status = 200, body = Page<Operation>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn operation_list(
    State(app): State<Arc<App>>,
    scope: Scope,
    Query(params): Query<ListParams>,
) -> Result<Json<Page<Operation>>, Error> {
    let part = Part::new(params.into())?;
    let found = app.read(|records| Ok(records.operations(&scope.project, &part.after, part.limit + 1)?))?;
    let found = found.into_iter().map(|operation| app.with_progress(operation)).collect();
    Ok(page(found, part.limit, |operation| operation.id.clone()))
}

/// The operation, if it exists for the caller, who must have this role to do what is asked.
fn find(app: &App, scope: &Scope, id: &str, role: Role) -> Result<Operation, Error> {
    let operation = app.read(|records| Ok(records.operation(id)?.view))?;
    match scope.caller.role(&operation.project) {
        None => Err(Error::new(ErrorCode::NotFound, format!("there is no operation {id:?}"))),
        Some(has) if has < role => {
            let message = format!("{:?} is no operator of {:?}", scope.caller.name, operation.project);
            Err(Error::new(ErrorCode::Forbidden, message))
        }
        Some(_) => Ok(operation),
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitParams {
    /// Wait until it has ended, but not longer than so many seconds, at most 60.
    #[serde(default)]
    #[param(minimum = 0, maximum = 60)]
    wait: Option<u32>,
}

/// Shows an operation; waits for its end if asked for.
#[utoipa::path(get, path = "/v1/operations/{operation}", operation_id = "operation_view", tag = "arnia",
    params(WaitParams, ("operation" = String, Path, description = "Its identity")),
    responses((status = 200, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn operation_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(id): Path<String>,
    Query(params): Query<WaitParams>,
) -> Result<Json<Operation>, Error> {
    let operation = find(&app, &scope, &id, Role::Viewer)?;
    let seconds = params.wait.unwrap_or(0);
    if seconds > WAIT_MAX {
        return Err(Error::new(ErrorCode::BadRequest, format!("waiting is limited to {WAIT_MAX} seconds")));
    }
    if seconds == 0 {
        return Ok(Json(app.with_progress(operation)));
    }
    Ok(Json(app.wait_operation(&id, Duration::from_secs(seconds.into())).await?))
}

/// Cancels an operation.
#[utoipa::path(delete, path = "/v1/operations/{operation}", operation_id = "operation_cancel", tag = "arnia",
    params(("operation" = String, Path, description = "Its identity")),
    responses((status = 202, description = "It ends"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn operation_cancel(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(id): Path<String>,
) -> Result<StatusCode, Error> {
    let operation = find(&app, &scope, &id, Role::Operator)?;
    app.cancel_operation(&operation.id)?;
    Ok(StatusCode::ACCEPTED)
}
