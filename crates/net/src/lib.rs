//! Frames and user-mode networking: DHCP, DNS, NAT and port forwarding without root.

mod backend;
mod checksum;
mod error;
pub mod fuzzing;
mod mac;
mod nat;
mod random;

pub use backend::Backend;
pub use error::{NetError, NetErrorKind};
pub use mac::MacAddress;
pub use nat::{
    Forward, ForwardId, ForwardStatus, GATEWAY_NAME, HOST_NAME, HostLoopback, Ipv4Subnet, Nat, NatConfig,
    NatHandle, NatLimits, NatStats, Outside, Resolvers, Transport,
};
