//! The REST API, version 1: what clients send and get under `/v1`.
//!
//! `XParams` is a request, `X` a view, `XConfig` what users write. Fields are only ever added; a change of
//! meaning is a new version. Times are seconds since 1970-01-01 UTC.

pub mod access;
pub mod error;
pub mod event;
pub mod guest;
pub mod host;
pub mod image;
pub mod limits;
pub mod mount;
pub mod name;
pub mod network;
pub mod operation;
pub mod page;
pub mod project;
pub mod screen;
pub mod snapshot;
pub mod storage;
pub mod vm;

/// Seconds since 1970-01-01 00:00 UTC.
pub type Time = i64;

/// The project that is meant when none is named. It always exists.
pub const DEFAULT_PROJECT: &str = "default";
/// The largest body of a request, in bytes.
pub const BODY_LEN_MAX: usize = 1 << 20;
