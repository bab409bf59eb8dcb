//! Runs [`agent::fuzzing::frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| api::agent::fuzzing::frames(data));
