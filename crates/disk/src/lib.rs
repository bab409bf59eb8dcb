//! Disks behind virtual machines: the disk contract and the raw format.
//!
//! A [`Disk`] is an array of bytes that a device model reads and writes by [`Buffers`]: lists of
//! stretches of guest RAM (moved without a copy by the formats that can) or plain memory. A device does
//! not call it directly but through an [`IoQueue`], one per device queue, to which it submits
//! [`Request`]s and from which it takes [`Completion`]s; so a format that works asynchronously needs no
//! other device than one that blocks.
//!
//! ```text
//!   device worker ── submit(Request) ──> IoQueue ── read/write/… ──> Disk (raw, …) ──> file
//!                 <── Completion ───────
//! ```
//!
//! **Threads.** A `Disk` is shared by all queues of a device and callable from any thread. An `IoQueue`
//! belongs to one thread. What can be done without waiting is done inside `submit`; for the rest a raw file has
//! an io_uring where the kernel permits it, and any other disk threads ([`PoolQueue`]).
//!
//! **Who validates.** The guest's numbers come through unchecked: every operation checks its range
//! against the disk's present size ([`ErrorKind::OutOfRange`]) and whether it may write
//! ([`ErrorKind::ReadOnly`]). No operation panics on any offset, length or buffer. What a request means
//! in the device's own terms (sector size, segment limits) is the device's to check.
//!
//! **What is durable when.** See [`Disk::flush`] and [`Durability`].
//!
//! | format | type | reads | writes | asynchronous |
//! |---|---|---|---|---|
//! | raw file or block device | [`Raw`] | yes | yes | io_uring or threads |
//! | qcow2, versions 2 and 3 | [`qcow2::Qcow2`] | yes | yes | threads |
//! | VMDK (sparse, stream-optimised, flat) | – | yes | made anew | no |
//! | VDI | – | yes | made anew | no |
//! | VHD (fixed, dynamic, differencing) | – | yes | made anew (dynamic) | no |
//! | VHDX, its log replayed | – | yes | made anew | no |
//!
//! [`Image::open`] opens any of them, with what it stands on.

mod buffers;
mod bytes;
mod contract;
mod convert;
mod error;
mod file;
pub mod fuzzing;
mod io_queue;
mod job;
mod layers;
mod live;
mod lock;
mod mapped;
mod open;
mod pool;
pub mod qcow2;
mod raw;
mod ring;
mod scratch;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use buffers::{Buffers, NotRam};
pub use contract::{Content, Disk, DiskInfo, Durability, Extent, Unmap};
pub use convert::{TargetOptions, convert, create};
pub use error::{Error, ErrorKind, Operation};
pub use io_queue::{BlockingQueue, Completion, IoQueue, Request, RequestKind};
pub use job::Progress;
pub use layers::{
    check, commit, compact, create_overlay, create_overlay_over, draft_overlay_over, flatten, rebase,
};
pub use live::{Freezing, Live, LiveDisk, LiveInfo, is_layer, is_layer_of};
pub use open::{BackingPolicy, Format, Image, ImageInfo, OpenOptions};
pub use pool::PoolQueue;
pub use raw::{Access, Raw};
pub use scratch::Scratch;

/// The unit in which disks are counted towards guests, in bytes.
pub const SECTOR_SIZE: u64 = 512;
