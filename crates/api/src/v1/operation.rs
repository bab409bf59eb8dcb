//! Operations: work that takes longer than a request.

use super::Time;
use super::error::ApiError;
use serde::{Deserialize, Serialize};

/// Work that goes on, or has ended. It outlives the daemon: one that was answered with 202 is carried on when
/// the daemon comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its identity.
    pub id: String,
    /// What it does, like `vm_start`.
    pub kind: String,
    /// The project that it belongs to.
    pub project: String,
    /// What it works on.
    pub target: Target,
    /// How far it is.
    pub state: OperationState,
    /// For people, while it runs: what it does just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// Who asked for it.
    pub user: String,
    /// When it was asked for.
    pub created: Time,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
}

/// What an operation works on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Target {
    /// `vm`, `volume` and so on.
    pub kind: String,
    /// Its identity.
    pub id: String,
    /// Its name when the operation began.
    pub name: String,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It was done.
    Succeeded,
    /// It was not; `error` says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// What an operation does just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// For people.
    pub message: String,
    /// How much is done, of `total`, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// How much there is to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}
