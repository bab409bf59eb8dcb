//! Every type that crosses a process boundary, versioned.
//!
//! [`worker`] is what a worker process (`arnia-vmm`) is configured with and how it is controlled; [`v1`] is
//! the REST API of the daemon, version 1; [`agent`] is what the host asks of the agent inside a guest; [`switch`] is what the process of a
//! network is configured with. These are
//! wire types: as written by others, options allowed, unknown fields refused. Who receives one checks it into a
//! type of its own.
//!
//! There is no I/O here.

pub mod agent;
#[cfg(test)]
mod field_guard;
pub mod image;
pub mod share;
mod size;
pub mod switch;
pub mod v1;
pub mod worker;

pub use size::{ByteSize, ParseByteSizeError};
