//! Frames and user-mode networking: DHCP, DNS, NAT and port forwarding without root.
