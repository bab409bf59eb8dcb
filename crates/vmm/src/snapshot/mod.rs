//! Snapshots: a machine saved to a folder while it runs, and machines that go on from one.
//!
//! ```text
//! save     Controller ── Saver (thread) ──> Partial folder ── rename ──> NAME/
//!              │  short stops: take the dirty log; at last states, and what is still dirty
//!
//! restore  NAME/ (and its parents) ── Snapshot::open ──> checked ──> VmSpec, memory map, states
//! ```
//!
//! **What holds.** A snapshot is whole or not there: it is made in a hidden folder, its manifest is written
//! last, everything is synced, and only then it gets its name. Whatever fails in between leaves the machine
//! running and older snapshots as they are. What is read back is checked as untrusted input before anything
//! of the machine runs. `docs/reference/snapshots.md` describes the format.

pub mod chain;
pub mod checksum;
pub mod disks;
pub mod folder;
pub mod manifest;
mod outside;
pub mod restore;
pub mod saver;
pub mod state;

pub use folder::Folder;
pub use restore::Snapshot;
pub use state::MachineSaved;
