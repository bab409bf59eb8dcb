//! Runs [`difftest::fuzzing::compare_bytes`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| difftest::fuzzing::compare_bytes(data));
