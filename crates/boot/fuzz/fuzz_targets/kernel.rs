//! Runs [`boot::fuzzing::kernel`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| boot::fuzzing::kernel(data));
