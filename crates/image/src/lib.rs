//! Images: static things from which instances come.
//!
//! ```text
//!  recipe ── build ──┐                       ┌── Instance (own disks, seed, identity)
//!  file ──── import ─┼──> Store ── manifest ─┤
//!  registry ─ pull ──┘   (by content)        └── export, push
//! ```
//!
//! - [`Store`] holds the images of one host by content, with names, pins and signatures.
//! - [`build::build`] makes an image by a [`recipe::Recipe`]; [`Instance`] is a machine that comes from one,
//!   with a seed disk ([`seed`]) that makes it somebody of its own.
//! - Work that takes long tells a [`Progress`] and can be called off through it.
//!
//! Everything blocks; a caller with a reactor of its own uses threads. What comes from outside (manifests,
//! archives, registries) is hostile: it is bounded, checked against its digest, and never names a path.

pub mod build;
mod disk_work;
mod error;
pub mod export;
mod files;
pub mod fuzzing;
pub mod import;
mod instance;
mod machine;
mod ovf;
mod progress;
mod publish;
pub mod recipe;
mod root_disk;
pub mod seed;
pub mod sign;
mod store;
mod tools;
pub mod transfer;

pub use error::{Error, ErrorKind, Result};
pub use files::copy_sparse;
pub use instance::{INSTANCE_FILE, Instance, InstanceDisk, InstanceParams};
pub use progress::{Progress, Silent};
pub use publish::publish;
pub use store::{PruneOptions, Pruned, Session, Store};
