//! Why a request was refused, or the daemon could not start.

use api::v1::error::{ApiError, ErrorCode};
use std::fmt;

/// A refusal: what clients get.
#[derive(Clone, Debug)]
pub struct Error(pub ApiError);

impl Error {
    /// A refusal of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Error {
        Error(ApiError::new(code, message))
    }

    /// The host or the daemon failed.
    pub fn internal(message: impl Into<String>, cause: impl ToString) -> Error {
        Error(ApiError::new(ErrorCode::Internal, message).with_cause(cause))
    }

    /// Adds what to do next.
    pub fn with_remedy(self, remedy: impl Into<String>) -> Error {
        Error(self.0.with_remedy(remedy))
    }

    /// Adds what lies behind it.
    pub fn with_cause(self, cause: impl ToString) -> Error {
        Error(self.0.with_cause(cause))
    }

    /// Its kind.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Error {
        Error(error)
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        let code = match error.kind() {
            store::ErrorKind::NotFound => ErrorCode::NotFound,
            store::ErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
            store::ErrorKind::Changed => ErrorCode::Changed,
            store::ErrorKind::Database => ErrorCode::Internal,
        };
        let refusal = ApiError::new(code, error.to_string());
        Error(match (error.kind(), std::error::Error::source(&error)) {
            (store::ErrorKind::Changed, _) => refusal.with_remedy("read it again and repeat the change"),
            (store::ErrorKind::AlreadyExists, _) => refusal.with_remedy("choose another name"),
            (_, Some(source)) => refusal.with_cause(source),
            _ => refusal,
        })
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Error {
        use image::ErrorKind as Kind;
        let code = match error.kind() {
            Kind::NotFound => ErrorCode::NotFound,
            Kind::BadInput | Kind::Unverified => ErrorCode::Invalid,
            Kind::Busy => ErrorCode::InUse,
            Kind::Cancelled => ErrorCode::Cancelled,
            _ => ErrorCode::Internal,
        };
        let refusal = ApiError::new(code, error.to_string());
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let refusal = if causes.is_empty() { refusal } else { refusal.with_cause(causes.join(": ")) };
        Error(match error.remedy() {
            Some(remedy) => refusal.with_remedy(remedy),
            None => refusal,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

/// The daemon cannot start.
#[derive(Debug)]
pub struct StartError {
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StartError {
    pub(crate) fn new(message: impl Into<String>) -> StartError {
        StartError { message: message.into(), source: None }
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StartError {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
