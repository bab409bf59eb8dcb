//! Events: what happens, as it happens.

use super::Time;
use super::operation::Operation;
use super::vm::VmState;
use serde::{Deserialize, Serialize};

/// Something that happened. In the stream of `/v1/events`, `id` is the event's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Counts up by one; begins anew with the daemon.
    pub id: u64,
    /// When.
    pub time: Time,
    /// The project in which it happened.
    pub project: String,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// A machine changed its state, was created or changed.
    VmChanged {
        /// Its identity.
        vm: String,
        /// Its name.
        name: String,
        /// Its state now.
        state: VmState,
        /// Why, if there is a reason to tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A machine is gone.
    VmDeleted {
        /// Its identity.
        vm: String,
        /// Its name.
        name: String,
    },
    /// An operation began, went on or ended.
    OperationChanged {
        /// The operation now.
        operation: Box<Operation>,
    },
}
