//! Folders of the host that guests see.
//!
//! ```text
//!  guest ── virtio-fs ──> worker: virtio::fs ── Link ── one socket per share ──> serve::Server ── Folder
//!                         routes by node ID                                      a process of its own
//! ```
//!
//! - [`fuse`] is the protocol (linux/fuse.h): messages taken apart and put together, without I/O;
//! - [`Folder`] is a folder of the host that cannot be left: every step goes one name down from an open
//!   folder, and the kernel is told to follow no link and to cross no mount;
//! - [`Session`] answers one guest's requests: nodes, open files, both bounded;
//! - [`serve`] is the process around it: a socket, threads, an end when nobody needs it any more;
//! - [`Link`] is a machine's end of the cable.
//!
//! **The wire** is a socket of type SEQPACKET. The first packet is [`HELLO`] and the share's [`Key`]; from then on a
//! packet is a whole FUSE request one way, a whole answer the other way. Both are bounded by [`MESSAGE_MAX`].
//!
//! **Node IDs** carry the share in their upper 24 bits ([`fuse::NodeId`]), so that a machine knows where a request goes
//! without knowing what it is about. The numbers below begin anywhere in each session: a guest that goes on from a
//! snapshot holds IDs that nobody knows (`ESTALE`), never those of other files.
//!
//! **Guests are hostile.** Requests are checked before anything is done; what is open is bounded by [`Limits`].

mod folder;
pub mod fuse;
#[cfg(any(test, feature = "test"))]
pub mod fuzzing;
mod key;
mod link;
pub mod serve;
mod session;
mod wire;

pub use folder::{Folder, FolderConfig, FolderError, Owner};
pub use key::{BadKey, Key};
pub use link::{Link, Received, Sent};
pub use session::{Limits, Session};
pub use wire::{HELLO, listen};

/// Largest payload of a read, a write, or a listing, in bytes: what a guest's kernel asks for when nothing more is
/// negotiated.
pub const PAYLOAD_MAX: u32 = 128 << 10;
/// Largest message: a payload with its headers. Sockets of this kind take no more than some 200 KiB.
pub const MESSAGE_MAX: usize = PAYLOAD_MAX as usize + 4096;

#[cfg(test)]
mod tests;
