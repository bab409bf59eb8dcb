//! Runs [`net::fuzzing::switch_frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| net::fuzzing::switch_frames(data));
