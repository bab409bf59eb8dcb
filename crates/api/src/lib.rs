//! Every type that crosses a process boundary, versioned.
//!
//! Today that is [`worker`]: what a worker process (`arnia-vmm`) is configured with and how it is
//! controlled. These are wire types: as written by others, options allowed, unknown fields refused. Who
//! receives one checks it into a type of its own.
//!
//! There is no I/O here.

mod size;
pub mod worker;

pub use size::{ByteSize, ParseByteSizeError};
