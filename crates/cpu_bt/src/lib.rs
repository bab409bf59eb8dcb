//! The software CPU engine: runs unmodified x86-64 systems on an x86-64 host that offers no hardware
//! virtualization.
//!
//! Guest code is decoded into blocks ([`block`]), found by guest-physical address, and executed by
//! handlers: hand-written ones for the common integer instructions ([`interp`]), for everything that
//! system software may do ([`system`]), and, for all other unprivileged instructions, the host's own
//! instruction with its memory operand put elsewhere ([`native`]). Linear addresses go through a
//! software TLB filled by page-table walks ([`mmu`]). Each vCPU has a local APIC ([`lapic`]) and a word
//! of requests from other threads that it polls at every block ([`signals`]).
//!
//! The host is trusted to be an x86-64 processor and nothing more; no signal, no special device and no
//! privilege is used.

mod block;
mod counters;
mod cpu;
mod engine;
mod event_trace;
mod exec;
mod fault;
mod int;
mod interp;
mod jit;
mod lapic;
mod lockstep;
mod mmu;
mod native;
mod options;
#[cfg(test)]
mod parallel_tests;
mod regs;
mod signals;
mod system;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
mod thrift;
mod vcpu;
mod vm;

pub use engine::BtEngine;
pub use event_trace::{Trace, TraceFilter};
pub use options::{CODE_CACHE_SIZE_DEFAULT, CODE_CACHE_SIZE_MIN, Jit, Options, Stress};
