//! Frames and user-mode networking: DHCP, DNS, NAT and port forwarding without root.
//!
//! - [`Backend`] is the seam: what a network card is plugged into. A card hands in frames, asks for frames, and
//!   waits on one descriptor.
//! - [`Nat`] is a backend made of ordinary sockets: a router with DHCP and DNS for one guest network. It is
//!   described by a [`NatConfig`], which reads from text, and controlled from other threads by a [`NatHandle`]:
//!   [`Forward`] rules come and go while it runs, [`NatStats`] count.
//! - [`switch`] is the network that several machines have in common: a process of its own, with a `Nat` in it for
//!   addresses and names.
//! - [`MacAddress`] parses, prints and makes up MAC addresses.
//!
//! **Threads**: a backend belongs to the one thread that moves its frames, never blocks it and starts none.
//!
//! **Errors**: [`NetError`] is for those who set a network up. What a guest sends wrong is dropped and counted,
//! or answered as a router would; it is never an error, and never a panic.
//!
//! ```no_run
//! use net::{Backend, Nat, NatConfig};
//!
//! # fn main() -> Result<(), net::NetError> {
//! let config: NatConfig = "forward=2222:22,hostname=box".parse()?;
//! let mut nat = Nat::new(config)?;
//! let handle = nat.handle(); // for other threads
//! // The card's thread, each time that the descriptor is readable or the guest has sent:
//! nat.poll();
//! let mut frame = vec![0; nat.frame_size_max()];
//! while let Some(length) = nat.receive(&mut frame) {
//!     // hand frame[..length] to the guest
//! }
//! # drop(handle);
//! # Ok(())
//! # }
//! ```

mod backend;
mod checksum;
mod error;
pub mod fuzzing;
mod mac;
mod nat;
mod random;
pub mod switch;

pub use backend::Backend;
pub use error::{NetError, NetErrorKind};
pub use mac::MacAddress;
pub use nat::{
    Forward, ForwardId, ForwardStatus, GATEWAY_NAME, HOST_NAME, HostLoopback, Ipv4Subnet, Nat, NatConfig,
    NatHandle, NatHost, NatLimits, NatStats, Outside, Resolvers, Transport,
};
