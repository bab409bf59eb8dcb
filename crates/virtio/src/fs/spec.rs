//! Constants of the file system device (virtio 1.2, §5.11).

#![allow(missing_docs)]

/// Numbers of the queues (§5.11.2), without the notification queue, which is not offered.
pub mod queue {
    /// Requests that must not wait behind others.
    pub const HIPRIO: usize = 0;
    /// All else.
    pub const REQUEST: usize = 1;
    pub const COUNT: usize = 2;
}

/// `struct virtio_fs_config` (§5.11.4): the tag, and the number of request queues.
pub const TAG_LEN: usize = 36;
pub const CONFIG_LEN: usize = TAG_LEN + 4;
