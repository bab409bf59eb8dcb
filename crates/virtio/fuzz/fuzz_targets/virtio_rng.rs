//! Runs [`virtio::fuzzing::rng`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::rng(data));
