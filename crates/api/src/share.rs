//! What the file server of one share is started with.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A folder of the host that one machine's guest sees.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileServerConfig {
    /// For people: project, machine and share.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
    /// Whether nothing in it may be changed.
    pub read_only: bool,
    /// Who owns, in the guest, what the server's user owns here.
    pub uid: u32,
    /// And the group.
    pub gid: u32,
    /// Folders of this program, which guests never see.
    pub hidden: Vec<PathBuf>,
    /// The share's number.
    pub id: u32,
    /// The socket that the machine comes in by.
    pub socket: PathBuf,
    /// The secret by which it is let in, as 64 hexadecimal digits.
    pub key: String,
}

impl std::fmt::Debug for FileServerConfig {
    /// Without the key: it is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let FileServerConfig { name, folder, read_only, uid, gid, hidden, id, socket, key: _ } = self;
        f.debug_struct("FileServerConfig")
            .field("name", name)
            .field("folder", folder)
            .field("read_only", read_only)
            .field("owner", &(uid, gid))
            .field("hidden", hidden)
            .field("id", id)
            .field("socket", socket)
            .finish_non_exhaustive()
    }
}
