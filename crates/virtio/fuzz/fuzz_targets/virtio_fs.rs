//! Runs [`virtio::fuzzing::fs`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::fs(data));
