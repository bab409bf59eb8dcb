//! Tests of the engine's processor, one instruction at a time.

mod availability;
mod differential;
mod extremes;
mod probe;
