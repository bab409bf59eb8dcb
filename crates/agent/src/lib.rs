//! The guest agent: a small program in the guest that does what its host asks.
//!
//! ```text
//!   listen ── accepts the host, and nobody else
//!     └─ session ── one thread per connection: a request, its answer, the next
//!          ├─ exec         programs, with or without a terminal
//!          ├─ files        reading and writing, attributes, folders
//!          ├─ freeze       file systems held for a snapshot
//!          ├─ personality  hostname, machine-id, SSH host keys, users, ...
//!          └─ info, interfaces, power, generalise, shares
//! ```
//!
//! The protocol is [`api::agent`]. The agent runs as root and does what the host says: the host owns the
//! guest anyway. Its care is for everybody else: programs in the guest cannot connect, and what comes in
//! frames is bounded. There is no state between connections but the frozen file systems.
//!
//! Paths of the system are reached through a [`Root`], so that tests work on a folder.

mod exec;
mod failure;
mod files;
pub mod firstboot;
mod freeze;
pub mod generalise;
mod info;
mod interfaces;
pub mod listen;
mod personality;
mod power;
mod root;
mod session;
mod shares;
mod users;

pub use root::Root;
