//! Runs [`platform::fuzzing::pit`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::pit(data));
