//! The one shape of all errors.

use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ApiError,
}

/// What went wrong, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: a clause without a final stop.
    pub message: String,
    /// What lies behind it, if something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do next, if anything helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What went wrong, in kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is not well formed: 400.
    BadRequest,
    /// Nobody is logged in: 401.
    Unauthenticated,
    /// The caller may not do this: 403.
    Forbidden,
    /// It does not exist, or not for this caller: 404.
    NotFound,
    /// There is no such method here: 405.
    MethodNotAllowed,
    /// The name is taken: 409.
    AlreadyExists,
    /// The state of something does not allow it: 409.
    WrongState,
    /// Something else still uses it: 409.
    InUse,
    /// It was changed since it was read: 412.
    Changed,
    /// The body is too large: 413.
    TooLarge,
    /// The body is not of the right type: 415.
    UnsupportedMediaType,
    /// The request is well formed, but asks for something that cannot be: 422.
    Invalid,
    /// The project's quota does not allow it: 422.
    QuotaExceeded,
    /// Too many requests at a time: 429.
    TooManyRequests,
    /// The operation was cancelled.
    Cancelled,
    /// The guest did not do what it was asked for in time: 504.
    GuestTimeout,
    /// The guest, or the agent in it, failed: 502.
    GuestFailed,
    /// The request is well formed, but asks for something that this daemon cannot do: 422.
    Unsupported,
    /// The host or the daemon failed: 500.
    Internal,
    /// The worker of the machine, or another part, does not answer now: 503.
    Unavailable,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::Unauthenticated => 401,
            ErrorCode::Forbidden => 403,
            ErrorCode::NotFound => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::AlreadyExists | ErrorCode::WrongState | ErrorCode::InUse | ErrorCode::Cancelled => 409,
            ErrorCode::Changed => 412,
            ErrorCode::TooLarge => 413,
            ErrorCode::UnsupportedMediaType => 415,
            ErrorCode::Invalid | ErrorCode::Unsupported | ErrorCode::QuotaExceeded => 422,
            ErrorCode::TooManyRequests => 429,
            ErrorCode::Internal => 500,
            ErrorCode::GuestFailed => 502,
            ErrorCode::Unavailable => 503,
            ErrorCode::GuestTimeout => 504,
        }
    }
}

impl ApiError {
    /// An error of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), cause: None, remedy: None }
    }

    /// Adds what lies behind it.
    pub fn with_cause(mut self, cause: impl ToString) -> ApiError {
        self.cause = Some(cause.to_string());
        self
    }

    /// Adds what to do next.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> ApiError {
        self.remedy = Some(remedy.into());
        self
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}
