//! Frames and user-mode networking: DHCP, DNS, NAT and port forwarding without root.

mod backend;

pub use backend::Backend;
