//! The worker process: one virtual machine each.
//!
//! [`config`] is what a worker is started with, [`control`] how it is talked to while it runs, and
//! [`exit`] what its exit status means.

pub mod config;
pub mod control;
pub mod exit;
