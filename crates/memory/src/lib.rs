//! Guest-physical memory: RAM regions, volatile and atomic access, dirty tracking and the code-page
//! watch.
//!
//! [`Ram`] is the memory of one machine: a memfd, or a private copy-on-write mapping of files that hold
//! a saved machine's memory. Every writer goes through it or reports to it, so that two things are always
//! true:
//!
//! - while dirty logging is on, each page written since the last [`Ram::take_dirty`] is in the log;
//! - when a page that an engine holds translated code of is written, that engine's [`CodeWatcher`]
//!   hears of it, after the bytes have changed.
//!
//! Loaders and devices use [`Ram::guest`], whose accesses report themselves (through `vm_memory`'s
//! bitmap hook). An engine writes through raw host pointers from [`Ram::host_page`] for speed and keeps
//! the two promises itself: it asks [`Ram::write_needs_report`] when it caches a page for writing, and
//! calls [`Ram::report_write`] for writes to pages that need it.
//!
//! RAM is never a Rust reference outside this crate: all access is volatile, atomic, or by raw pointer.

mod contents;
mod error;
mod map;
mod pages;
mod ram;
mod video;
mod watch;
mod zeroed;

pub use contents::data_ranges;
pub use error::{Error, ErrorKind};
pub use map::FileSegment;
pub use pages::PageSet;
pub use ram::{HIGH_RAM_START, HostPage, LOW_RAM_END, PAGE_SIZE, Ram, RamRange};
pub use video::VideoMemory;
pub use watch::{CodeWatcher, WriteWatch};
pub use zeroed::{Zeroable, prefer_huge_pages, zeroed, zeroed_box};

pub use vm_memory::{Bytes, GuestAddress};

/// The view of guest memory that devices, rings and loaders use. All its writes are reported.
pub type GuestMemory = vm_memory::GuestMemoryMmap<WriteWatch>;
