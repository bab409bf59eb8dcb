//! Runs [`difftest::fuzzing::execute_bytes`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| difftest::fuzzing::execute_bytes(data));
