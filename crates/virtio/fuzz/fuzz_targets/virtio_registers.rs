//! Runs [`virtio::fuzzing::registers`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::registers(data));
