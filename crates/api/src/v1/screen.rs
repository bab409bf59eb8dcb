//! The screen of a machine and its keyboard.

use serde::{Deserialize, Serialize};

/// Longest text that is typed at once, in bytes; more keys than this are not pressed at once either.
pub const KEYS_MAX: usize = 1024;

/// Keys to be pressed: those named, one after the other, then those that type the text on a US keyboard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Names of keys, those pressed together with hyphens in between: `enter`, `ctrl-alt-delete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 1024))]
    pub keys: Vec<String>,
    /// Text to be typed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1024))]
    pub text: String,
}
