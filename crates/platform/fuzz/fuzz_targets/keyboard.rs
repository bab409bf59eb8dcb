//! Runs [`platform::fuzzing::keyboard`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::keyboard(data));
