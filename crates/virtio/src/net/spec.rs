//! Constants of the network device (virtio 1.2, §5.1).

#![allow(missing_docs)]

/// Feature bits (§5.1.3), as masks.
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

/// `VIRTIO_NET_S_LINK_UP` (§5.1.4).
pub const S_LINK_UP: u16 = 1;

/// Offsets in `struct virtio_net_config` (§5.1.4).
pub mod config {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub const MTU: usize = 10;
    pub const LEN: usize = 12;
}

/// `struct virtio_net_hdr` (§5.1.6) of a modern device, always with `num_buffers`.
pub const HEADER_LEN: usize = 12;
/// Flags in it: the checksum is to be completed; the checksums are right.
pub const HDR_NEEDS_CSUM: u8 = 1;
pub const HDR_DATA_VALID: u8 = 2;
/// Its `gso_type`: nothing to be cut; a TCP segment to be cut; the latter with ECN.
pub const GSO_NONE: u8 = 0;
pub const GSO_TCPV4: u8 = 1;
pub const GSO_TCPV6: u8 = 4;
pub const GSO_ECN: u8 = 0x80;
/// Offset of `num_buffers` in it.
pub const HEADER_NUM_BUFFERS: usize = 10;
