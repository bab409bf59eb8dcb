//! Taking requests apart, with our form of errors for what is not well formed.

use crate::Error;
use crate::app::{App, Caller};
use crate::http::access::InProject;
use crate::http::right::Right;
use api::v1::error::ErrorCode;
use api::v1::page::{LIMIT_DEFAULT, LIMIT_MAX, PageParams};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A body of JSON.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Body<T>, Error> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim).map(str::to_ascii_lowercase);
        if !matches!(kind.as_deref(), Some("application/json" | "application/merge-patch+json")) {
            return Err(Error::new(ErrorCode::UnsupportedMediaType, "the body is not JSON")
                .with_remedy("send `Content-Type: application/json`"));
        }
        let bytes = Bytes::from_request(request, app).await.map_err(|e| {
            let code = match e.status().as_u16() {
                413 => ErrorCode::TooLarge,
                _ => ErrorCode::BadRequest,
            };
            Error::new(code, "the body cannot be read").with_cause(e)
        })?;
        parse(&bytes).map(Body)
    }
}

/// Reads JSON.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| {
        let code = match e.classify() {
            serde_json::error::Category::Data => ErrorCode::Invalid,
            _ => ErrorCode::BadRequest,
        };
        Error::new(code, "the body is not what this request takes").with_cause(e)
    })
}

/// The parameters after the question mark.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Query<T>, Error> {
        let query = axum::extract::Query::try_from_uri(&parts.uri).map_err(|e| {
            Error::new(ErrorCode::BadRequest, "the parameters are not what this request takes").with_cause(e)
        })?;
        Ok(Query(query.0))
    }
}

/// The parts of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Path<T>, Error> {
        let path = axum::extract::Path::from_request_parts(parts, app).await.map_err(|e| {
            Error::new(ErrorCode::BadRequest, "the path is not what this request takes").with_cause(e)
        })?;
        Ok(Path(path.0))
    }
}

/// A configuration changed by a JSON merge patch; `what` it is of.
pub(crate) fn patched<T: serde::Serialize + DeserializeOwned>(
    what: &str,
    config: &T,
    patch: serde_json::Value,
) -> Result<T, Error> {
    let mut config =
        serde_json::to_value(config).map_err(|e| Error::internal("the configuration is lost", e))?;
    merge(&mut config, patch);
    serde_json::from_value(config).map_err(|e| {
        let message = format!("the {what}'s configuration would not be well formed");
        Error::new(ErrorCode::Invalid, message).with_cause(e)
    })
}

/// RFC 7396, section 2.
fn merge(target: &mut serde_json::Value, patch: serde_json::Value) {
    let serde_json::Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = serde_json::Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(serde_json::Value::Null), value);
        }
    }
}

/// Who calls, and in which project; both have been checked.
pub(crate) struct Scope {
    pub(crate) caller: Caller,
    pub(crate) project: String,
    /// For what goes on after the request was answered.
    pub(crate) right: Right,
}

impl FromRequestParts<Arc<App>> for Scope {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Scope, Error> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let project = parts.extensions.get::<InProject>().cloned();
        let right = parts.extensions.get::<Right>().cloned();
        match (caller, project, right) {
            (Some(caller), Some(InProject(project)), Some(right)) => Ok(Scope { caller, project, right }),
            _ => Err(Error::new(ErrorCode::Internal, "a request came past the gate")),
        }
    }
}

/// The part of a list that is asked for, checked.
pub(crate) struct Part {
    pub(crate) after: String,
    pub(crate) limit: u32,
}

impl Part {
    pub(crate) fn new(params: PageParams) -> Result<Part, Error> {
        let limit = params.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Error::new(ErrorCode::BadRequest, format!("the limit is 1 to {LIMIT_MAX}")));
        }
        Ok(Part { after: params.after.unwrap_or_default(), limit })
    }
}

/// The revision that `If-Match` asks for; absent or `*` when any will do.
pub(crate) fn expected_revision(headers: &HeaderMap) -> Result<Option<i64>, Error> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    match value.to_str().unwrap_or_default().trim() {
        "*" => Ok(None),
        text => {
            let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            let revision = number.and_then(|number| number.parse().ok());
            // A tag that none of ours can be does not match.
            Ok(Some(revision.unwrap_or(-1)))
        }
    }
}

/// The key by which a repeated creation is known.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=128).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Error::new(ErrorCode::BadRequest, "an Idempotency-Key has 1 to 128 ASCII characters")),
    }
}
