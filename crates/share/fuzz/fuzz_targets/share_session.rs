//! Runs [`share::fuzzing::session`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| share::fuzzing::session(data));
