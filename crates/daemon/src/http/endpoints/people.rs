//! Users, tokens, the caller itself, the audit log.

use super::ListParams;
use crate::Error;
use crate::app::App;
use crate::http::extract::{Body, Part, Path, Query, Scope, expected_revision};
use crate::http::respond::{Tagged, page};
use api::v1::access::{AuditEntry, Identity, NewToken, Token, TokenParams, User, UserParams, UserUpdate};
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::page::Page;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use std::sync::Arc;

/// Creates a user.
#[utoipa::path(post, path = "/v1/users", operation_id = "user_create", tag = "arnia", request_body = UserParams,
    responses((status = 201, body = User), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn user_create(
    State(app): State<Arc<App>>,
    Body(params): Body<UserParams>,
) -> Result<Tagged<User>, Error> {
    let user = app.user_create(params)?;
    Ok(Tagged(StatusCode::CREATED, user.revision, user))
}

/// Lists users by name.
#[utoipa::path(get, path = "/v1/users", operation_id = "user_list", tag = "arnia",
    responses((status = 200, body = Page<User>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn user_list(State(app): State<Arc<App>>) -> Result<Json<Page<User>>, Error> {
    Ok(Json(Page { items: app.read(|records| Ok(records.users()?))?, next: None }))
}

/// Shows a user.
#[utoipa::path(get, path = "/v1/users/{user}", operation_id = "user_view", tag = "arnia",
    params(("user" = String, Path, description = "The name")),
    responses((status = 200, body = User), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn user_view(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Tagged<User>, Error> {
    let user = app.read(|records| Ok(records.user(&name)?))?;
    Ok(Tagged(StatusCode::OK, user.revision, user))
}

/// Changes a user.
#[utoipa::path(patch, path = "/v1/users/{user}", operation_id = "user_update", tag = "arnia",
    request_body = UserUpdate,
    params(("user" = String, Path, description = "The name"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag")),
    responses((status = 200, body = User), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn user_update(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(update): Body<UserUpdate>,
) -> Result<Tagged<User>, Error> {
    let user = app.user_update(&name, update, expected_revision(&headers)?)?;
    Ok(Tagged(StatusCode::OK, user.revision, user))
}

/// Removes a user with all tokens.
#[utoipa::path(delete, path = "/v1/users/{user}", operation_id = "user_delete", tag = "arnia",
    params(("user" = String, Path, description = "The name")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn user_delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Error> {
    app.user_delete(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a token. Its secret is shown this once.
#[utoipa::path(post, path = "/v1/tokens", operation_id = "token_create", tag = "arnia", request_body = TokenParams,
    responses((status = 201, body = NewToken), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn token_create(
    State(app): State<Arc<App>>,
    Body(params): Body<TokenParams>,
) -> Result<(StatusCode, Json<NewToken>), Error> {
    Ok((StatusCode::CREATED, Json(app.token_create(params)?)))
}

/// Lists tokens by user.
#[utoipa::path(get, path = "/v1/tokens", operation_id = "token_list", tag = "arnia",
    responses((status = 200, body = Page<Token>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn token_list(State(app): State<Arc<App>>) -> Result<Json<Page<Token>>, Error> {
    Ok(Json(Page { items: app.read(|records| Ok(records.tokens()?))?, next: None }))
}

/// Removes a token; from then on nobody can use it, and streams and consoles that were opened by it end.
#[utoipa::path(delete, path = "/v1/tokens/{token}", operation_id = "token_delete", tag = "arnia",
    params(("token" = String, Path, description = "Its identity")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn token_delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Error> {
    app.token_delete(&id)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells who is calling.
#[utoipa::path(get, path = "/v1/identity", operation_id = "identity_view", tag = "arnia",
    responses((status = 200, body = Identity), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn identity_view(scope: Scope) -> Json<Identity> {
    Json(Identity { user: scope.caller.name, grants: scope.caller.grants })
}

/// Lists who changed what, or was refused to, the newest first.
#[utoipa::path(get, path = "/v1/audit", operation_id = "audit_list", tag = "arnia", params(ListParams),
    responses((status = 200, body = Page<AuditEntry>), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn audit_list(
    State(app): State<Arc<App>>,
    Query(params): Query<ListParams>,
) -> Result<Json<Page<AuditEntry>>, Error> {
    let part = Part::new(params.into())?;
    let before = match part.after.as_str() {
        "" => i64::MAX,
        number => number
            .parse()
            .map_err(|_| Error::new(ErrorCode::BadRequest, "`after` is not the number of an entry"))?,
    };
    let entries = app.read(|records| Ok(records.audit(before, part.limit + 1)?))?;
    Ok(page(entries, part.limit, |entry| entry.id.to_string()))
}
