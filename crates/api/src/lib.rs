//! Every type that crosses a process boundary, versioned.
//!
//! [`worker`] is what a worker process (`arnia-vmm`) is configured with and how it is controlled;
//! [`agent`] is what the host asks of the agent inside a guest. These are wire types: as written by others,
//! options allowed, unknown fields refused. Who receives one checks it into a type of its own.
//!
//! There is no I/O here.

pub mod agent;
pub mod image;
mod size;
pub mod worker;

pub use size::{ByteSize, ParseByteSizeError};
