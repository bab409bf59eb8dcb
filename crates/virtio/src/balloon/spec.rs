//! Constants of the balloon (virtio 1.2, §5.5).

#![allow(missing_docs)]

/// Feature bits (§5.5.3), as masks.
pub mod feature {
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Offsets in `struct virtio_balloon_config` (§5.5.4).
pub mod config {
    pub const NUM_PAGES: usize = 0;
    pub const ACTUAL: usize = 4;
    pub const LEN: usize = 16;
}

/// Pages are always of 4 KiB here (§5.5.6).
pub const PAGE: u64 = 4096;

/// Length of `struct virtio_balloon_stat` (§5.5.6.3): a tag of 16 bits, a value of 64, packed.
pub const STAT_LEN: usize = 10;
/// The tags (§5.5.6.4), in their order, and what we call them.
pub const STAT_NAMES: [&str; 10] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_cache_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
];
