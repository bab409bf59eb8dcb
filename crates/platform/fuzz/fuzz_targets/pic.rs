//! Runs [`platform::fuzzing::pic`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::pic(data));
