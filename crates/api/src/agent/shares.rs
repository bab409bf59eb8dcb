//! Folders of the host that a guest sees, as the device for them lists them.

use serde::{Deserialize, Serialize};

/// The tag of the device: `mount -t virtiofs arnia /mnt`.
pub const TAG: &str = "arnia";
/// The file in its root that lists the shares: [`Listing`] as JSON.
pub const LISTING: &str = ".shares.json";

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The shares, each a folder of the root.
    pub shares: Vec<ListedShare>,
}

/// A share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedShare {
    /// The name of its folder in the root.
    pub name: String,
    /// Where it is to be mounted, as an absolute path of the guest.
    pub target: String,
    /// Whether nobody may write there.
    #[serde(default)]
    pub read_only: bool,
}

/// What became of a share in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareReport {
    /// Its name.
    pub name: String,
    /// Why it is not mounted; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
