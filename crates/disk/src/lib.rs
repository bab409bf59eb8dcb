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
//! belongs to one thread. The default queue ([`BlockingQueue`]) does the work inside `submit`.
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
//! | raw file or block device | [`Raw`] | yes | yes | no |

mod buffers;
mod contract;
mod error;
mod io_queue;
mod lock;
mod raw;
mod scratch;

pub use buffers::{Buffers, NotRam};
pub use contract::{Disk, DiskInfo, Durability, Unmap};
pub use error::{Error, ErrorKind, Operation};
pub use io_queue::{BlockingQueue, Completion, IoQueue, Request, RequestKind};
pub use raw::{Access, Raw};
pub use scratch::Scratch;

/// The unit in which disks are counted towards guests, in bytes.
pub const SECTOR_SIZE: u64 = 512;
