//! Users, roles, tokens, and the audit log.

use super::Time;
use serde::{Deserialize, Serialize};

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See.
    Viewer,
    /// See, and create, change, start, stop and remove.
    Operator,
    /// Everything, also what concerns the host.
    Admin,
}

/// A role in one project, or in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The project; absent for all, those to come included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What may be done there.
    pub role: Role,
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct User {
    /// The user's name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What the user may do, and where.
    pub grants: Vec<Grant>,
    /// When the user was created.
    pub created: Time,
    /// Changes with every change; also in the header `ETag`.
    pub revision: i64,
}

/// A user to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UserParams {
    /// The user's name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What the user may do, and where.
    #[serde(default)]
    pub grants: Vec<Grant>,
}

/// Changes of a user: what is present replaces what was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UserUpdate {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the user may do, and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<Grant>>,
}

/// A token: whoever has its secret acts as its user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// Its identity; no secret.
    pub id: String,
    /// Whom it stands for.
    pub user: String,
    /// For people.
    pub description: String,
    /// When it was created.
    pub created: Time,
    /// When it ends; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
}

/// A token to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenParams {
    /// Whom it stands for.
    pub user: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Seconds until it ends; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3153600000_i64))]
    pub lifetime: Option<i64>,
    /// A certificate in PEM: whoever has its key is the user, and there is no secret. Absent: a secret is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 65536))]
    pub certificate: Option<String>,
}

/// A token with its secret, which is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewToken {
    /// The token.
    pub token: Token,
    /// To be sent as `Authorization: Bearer SECRET`. It cannot be had again. Absent for a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Identity {
    /// The user's name; `local` for the daemon's owner on its socket.
    pub user: String,
    /// What the user may do, and where.
    pub grants: Vec<Grant>,
}

/// Something that somebody changed, or was refused to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// In the order of time.
    pub id: i64,
    /// When.
    pub time: Time,
    /// Who; absent if nobody was logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The operation of the API, like `vm_create`.
    pub action: String,
    /// The project, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The path of the request.
    pub path: String,
    /// The HTTP status that came of it.
    pub status: u16,
}
