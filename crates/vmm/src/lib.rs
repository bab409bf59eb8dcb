//! Builds and runs one virtual machine; the program `arnia-vmm`.
//!
//! ```text
//! command line ─ cli ─> VmConfig ─ spec ─> VmSpec ─ inputs ─> Inputs ─ machine ─> Machine ─ controller ─> Ended
//! (text)               (as written)       (checked)          (opened)            (built)                 (run)
//! ```
//!
//! Each step knows only its own matter: the command line opens nothing, the specification asks nothing of
//! the host, what is opened is checked before anything is made, and only the controller changes the state
//! of a machine that runs.
//!
//! **Threads.** `main` is the controller; beside it one thread per vCPU ([`vcpu`]), one per virtio queue
//! (in `virtio`), the timers (in `clock`), and for the outside: signals, terminal input and output, the
//! control socket with a thread per client.
//!
//! **What is absent**: device models, instruction execution, boot protocols. This crate only brings them
//! together; it is the only place where devices and engines meet.

mod bt;
pub mod cli;
pub mod control;
pub mod controller;
pub mod engines;
mod error;
pub mod fuzzing;
pub mod inputs;
pub mod log;
pub mod machine;
pub mod program;
pub mod sandbox;
pub mod signals;
pub mod snapshot;
pub mod source;
pub mod spec;
pub mod state;
pub mod terminal;
pub mod throttle;
pub mod undo;
pub mod vcpu;

pub use error::{Error, ErrorKind};
