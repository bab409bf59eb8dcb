//! Tests of system instructions, one file per family, on small machines that execute one instruction at
//! a time.

mod control;
mod interrupt;
mod io;
mod machine;
mod msr;
mod nonsense;
mod running;
mod segment;
mod state;
mod syscall;
mod task;
mod transfer;
mod virtual_8086;
