//! Constants of the socket device (virtio 1.2, §5.10).

#![allow(missing_docs)]

/// Feature bits (§5.10.3), as masks.
pub mod feature {
    pub const STREAM: u64 = 1 << 0;
}

/// The host's context ID (§5.10.4).
pub const HOST_CID: u64 = 2;
/// Context IDs below this are reserved.
pub const GUEST_CID_MIN: u64 = 3;

/// `struct virtio_vsock_hdr` (§5.10.6).
pub const HEADER_LEN: usize = 44;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// Operations (§5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of `SHUTDOWN` (§5.10.6.6): the sender will receive no more, will send no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
pub const SHUTDOWN_SEND: u32 = 2;
pub const SHUTDOWN_BOTH: u32 = 3;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (§5.10.6.7).
pub const EVENT_TRANSPORT_RESET: u32 = 0;
