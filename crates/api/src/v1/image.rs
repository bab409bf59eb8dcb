//! Images of the host.

use serde::{Deserialize, Serialize};

/// An image to be: one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageParams {
    /// Build it by a recipe.
    Build(ImageBuild),
    /// Fetch it from elsewhere.
    Pull(ImagePull),
    /// Make it of a machine.
    Publish(ImagePublish),
}

/// An image of a machine of the request's project, which comes from an image itself. A machine that runs forgets who it
/// is, by its agent, and is shut down; one that does not run is taken as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImagePublish {
    /// The machine, by name or identity.
    pub vm: String,
    /// The image's name, like `web:2`.
    pub name: String,
    /// A sentence about it; that of the machine's image when absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// An image to be built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageBuild {
    /// A recipe that the program brings along, like `debian`, or the text of one. A text cannot name files beside
    /// itself.
    pub recipe: String,
    /// Make everything anew.
    #[serde(default)]
    pub no_cache: bool,
}

/// An image to be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImagePull {
    /// Where it is: `https://HOST/PATH/TAG.json` or `oci://HOST/PATH:TAG`.
    pub place: String,
    /// Its name here; that of the place when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Take it also if no key that the daemon's user trusts has signed it.
    #[serde(default)]
    pub allow_unsigned: bool,
    /// Public keys, each as the text of its file, of which one must have signed it: instead of those that the daemon's
    /// user trusts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Who one is to a registry that wants to know. It is used for this and kept nowhere: after an end of the daemon in between the
    /// image has to be asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<RegistryLogin>,
}

/// A user of a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RegistryLogin {
    /// The name, without a colon.
    pub user: String,
    /// Password or token.
    pub password: String,
}

// What is written of requests must not have the password in it.
impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryLogin({})", self.user)
    }
}

/// Keys in a request at most.
pub const KEYS_MAX: usize = 64;
