//! The host's side of the agents in guests.
//!
//! [`Agent`] speaks to our own agent ([`api::agent`]) through the socket that the worker makes for the
//! guest's virtio socket. Every call makes a connection of its own; they may be made from many threads.
//!
//! ```no_run
//! # fn main() -> Result<(), agent_client::Error> {
//! use agent_client::{Agent, Command, GuestFiles};
//! let agent = Agent::of_worker("vm.vsock");
//! agent.wait_until_ready(std::time::Duration::from_secs(60))?;
//! let finished = agent.run(&Command::new(["uname", "-r"]))?;
//! assert!(finished.exit.code() == 0);
//! agent.write_file("/etc/motd", &Default::default(), &mut "hello\n".as_bytes())?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Exec`] is a running program with its streams. [`tree`] copies whole folders. [`qga`] speaks the
//! protocol of QEMU's guest agent, for guests that have that one.
//!
//! All calls block; a caller with a reactor of its own makes them on a thread for that. A guest is hostile:
//! what comes from it is bounded, and a name that it gives is never taken for a path of the host.

mod agent;
mod connection;
mod error;
mod exec;
mod files;
pub mod fuzzing;
pub mod qga;
mod timed;
pub mod tree;

pub use agent::{Agent, Command, Endpoint, Finished};
pub use error::{Error, ErrorKind};
pub use exec::{Exec, ExecEvent, ExecInput, ExecOutput};
pub use files::{FileAttributes, GuestFiles, HeldLists};
pub use timed::Timeouts;
