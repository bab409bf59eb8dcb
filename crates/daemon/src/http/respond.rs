//! Putting answers together.

use crate::Error;
use api::v1::error::{ErrorBody, ErrorCode};
use api::v1::operation::Operation;
use api::v1::page::Page;
use axum::Json;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.code() == ErrorCode::Internal {
            log::error!("{self}");
        }
        let mut response = (status, Json(ErrorBody { error: self.0 })).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let value = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }
}

/// An answer with a tag that changes with the thing.
pub(crate) struct Tagged<T>(pub(crate) StatusCode, pub(crate) i64, pub(crate) T);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let tag: [(HeaderName, String); 1] = [(header::ETAG, format!("\"{}\"", self.1))];
        (self.0, tag, Json(self.2)).into_response()
    }
}

/// An operation that goes on.
pub(crate) struct Accepted(pub(crate) Operation);

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let location = [(header::LOCATION, format!("/v1/operations/{}", self.0.id))];
        (StatusCode::ACCEPTED, location, Json(self.0)).into_response()
    }
}

/// A page of a list that was asked for with one item more than it may have.
pub(crate) fn page<T>(mut items: Vec<T>, limit: u32, key: impl Fn(&T) -> String) -> Json<Page<T>> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| more).map(key);
    Json(Page { items, next })
}
