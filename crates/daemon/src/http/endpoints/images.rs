//! Images.

use super::ProjectParam;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Path, Scope};
use crate::http::respond::Accepted;
use api::image::ImageView;
use api::v1::error::ErrorBody;
use api::v1::image::ImageParams;
use api::v1::operation::Operation;
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;

/// Makes an image: builds it by a recipe, or fetches it.
#[utoipa::path(post, path = "/v1/images", operation_id = "image_create", tag = "arnia", request_body = ImageParams,
    params(ProjectParam),
    responses((status = 202, body = Operation), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn image_create(
    State(app): State<Arc<App>>,
    scope: Scope,
    Body(params): Body<ImageParams>,
) -> Result<Accepted, Error> {
    Ok(Accepted(app.image_create(&scope.caller, &scope.project, params)?))
}

/// Lists the images of the host, by name.
#[utoipa::path(get, path = "/v1/images", operation_id = "image_list", tag = "arnia",
    responses((status = 200, body = Page<ImageView>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn image_list(State(app): State<Arc<App>>) -> Result<Json<Page<ImageView>>, Error> {
    Ok(Json(Page { items: app.image_list()?, next: None }))
}

/// Shows an image.
#[utoipa::path(get, path = "/v1/images/{image}", operation_id = "image_view", tag = "arnia",
    params(("image" = String, Path, description = "Name, digest, or the digest's first digits")),
    responses((status = 200, body = ImageView), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn image_view(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<ImageView>, Error> {
    Ok(Json(app.image(&name)?))
}

/// Takes a name of an image away. The image goes when it has no name and no machine comes from it.
#[utoipa::path(delete, path = "/v1/images/{image}", operation_id = "image_delete", tag = "arnia",
    params(("image" = String, Path, description = "Its name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn image_delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.image_delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
