//! Runs [`virtio::fuzzing::queue`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::queue(data));
