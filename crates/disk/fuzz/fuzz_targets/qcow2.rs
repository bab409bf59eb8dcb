//! Runs [`disk::fuzzing::qcow2`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| disk::fuzzing::qcow2(data));
