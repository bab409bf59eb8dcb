//! Projects.

use crate::Error;
use crate::app::{App, projects::view};
use crate::http::access::no_project;
use crate::http::extract::{Body, Path, Scope, expected_revision};
use crate::http::respond::Tagged;
use api::v1::error::ErrorBody;
use api::v1::page::Page;
use api::v1::project::{Project, ProjectParams, ProjectUpdate};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use std::sync::Arc;

/// Creates a project.
#[utoipa::path(post, path = "/v1/projects", operation_id = "project_create", tag = "arnia",
    request_body = ProjectParams, responses((status = 201, body = Project), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn project_create(
    State(app): State<Arc<App>>,
    Body(params): Body<ProjectParams>,
) -> Result<Tagged<Project>, Error> {
    let project = app.project_create(params)?;
    Ok(Tagged(StatusCode::CREATED, project.revision, project))
}

/// Lists the projects that the caller has a role in, by name.
#[utoipa::path(get, path = "/v1/projects", operation_id = "project_list", tag = "arnia",
    responses((status = 200, body = Page<Project>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn project_list(
    State(app): State<Arc<App>>,
    scope: Scope,
) -> Result<Json<Page<Project>>, Error> {
    let items = app.read(|records| {
        let projects = records.projects()?.into_iter();
        let visible = projects.filter(|project| scope.caller.role(&project.name).is_some());
        visible.map(|project| view(records, project)).collect()
    })?;
    Ok(Json(Page { items, next: None }))
}

/// Shows a project.
#[utoipa::path(get, path = "/v1/projects/{name}", operation_id = "project_view", tag = "arnia",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = Project), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn project_view(
    State(app): State<Arc<App>>,
    scope: Scope,
    Path(name): Path<String>,
) -> Result<Tagged<Project>, Error> {
    if scope.caller.role(&name).is_none() {
        return Err(no_project(&name));
    }
    let project = app.read(|records| view(records, records.project(&name)?))?;
    Ok(Tagged(StatusCode::OK, project.revision, project))
}

/// Changes a project.
#[utoipa::path(patch, path = "/v1/projects/{name}", operation_id = "project_update", tag = "arnia",
    request_body = ProjectUpdate,
    params(("name" = String, Path, description = "Its name"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag")),
    responses((status = 200, body = Project), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn project_update(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(update): Body<ProjectUpdate>,
) -> Result<Tagged<Project>, Error> {
    let project = app.project_update(&name, update, expected_revision(&headers)?)?;
    Ok(Tagged(StatusCode::OK, project.revision, project))
}

/// Removes an empty project.
#[utoipa::path(delete, path = "/v1/projects/{name}", operation_id = "project_delete", tag = "arnia",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn project_delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.project_delete(&name)?;
    Ok(StatusCode::NO_CONTENT)
}
