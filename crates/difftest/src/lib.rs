//! Differential tests of CPU engines against the host processor.
//!
//! ```text
//! forms      one instruction form after the other: every opcode that user code may execute
//!   |        with registers, memory operands at interesting places, immediates
//! inputs     register contents: boundary values, special floating-point numbers, random
//!   |
//!   v
//! Case ──> host     executes it in a child process, faults included, at the same addresses
//!      └─> guest    executes it in the engine, in 64-bit user mode, with the same memory
//!             |
//!             v
//! compare    registers, flags, vectors, x87, memory, fault: a readable report of each difference
//! ```
//!
//! The host is right by definition. Everything is derived from a seed, so a failure can be repeated.
//! The tests run a bounded number of cases; `DIFFTEST_FULL=1` runs many more, and `DIFFTEST_SEED`,
//! `DIFFTEST_CASES` and `DIFFTEST_FILTER` (parts of opcode names) choose others. What may differ, and
//! why, is said where it is tolerated, in `suite` and `compare`.
//!
//! [`fuzzing`] feeds arbitrary bytes to the engine, in all modes, without an oracle: it must survive.

mod case;
mod compare;
mod forms;
pub mod fuzzing;
mod guest;
mod host;
mod images;
mod inputs;
mod random;
mod sequences;
mod suite;

pub use suite::{Failure, Report, Suite, Way};
