//! A switch in user space: the network that several machines have in common, each in a process of its own.
//!
//! ```text
//!  worker          worker           the process of the network
//!  SwitchLink ───┐                  ┌─────────── Switch ───────────────┐
//!  SwitchLink ───┼─ one socket ───> │ filter ─> ports by MAC ─> filter │
//!  SwitchLink ───┘  for each card   │    └─> Nat: DHCP, names, outside │
//!                                   └──────────────────────────────────┘
//! ```
//!
//! - [`Switch`] is the network's process: it listens at one Unix socket, and knows from [`SwitchPort`]s who may come,
//!   with which MAC address and IPv4 address. Nothing is learned, so that nothing can be taught wrong.
//! - [`SwitchLink`] is a machine's end: a [`Backend`](crate::Backend) that comes back by itself when the network's
//!   process starts anew.
//!
//! **The wire** is a socket of type SEQPACKET: a packet is a frame. The first packet is [`HELLO`] and the port's
//! [`PortKey`]; the switch answers [`WELCOME`], or closes the socket. A key is a secret: whoever has none of a network
//! cannot be plugged into it, whichever sockets it may reach.
//!
//! **Guests are hostile**: a frame whose sender is not the card it comes from, or that says an IPv4 address of another,
//! is dropped ([`filter`]); each port has its turn, of so many frames; a slow guest loses frames, and no other does;
//! broadcasts are bounded.

mod filter;
mod link;
mod ports;
mod serve;
mod wire;

pub(crate) use filter::fuzz;
pub use link::SwitchLink;
pub use ports::{PortKey, SwitchPort};
pub use serve::{Switch, SwitchEvent, SwitchStats};
pub use wire::{HELLO, WELCOME, listen};

#[cfg(test)]
mod tests;
