//! The worker process: one virtual machine each.
//!
//! [`config`] is what a worker is started with, [`control`] how it is talked to while it runs,
//! [`snapshot`] what it leaves on disk of a machine, and [`exit`] what its exit status means.

pub mod config;
pub mod control;
pub mod exit;
pub mod snapshot;
