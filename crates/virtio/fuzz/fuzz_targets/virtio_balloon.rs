//! Runs [`virtio::fuzzing::balloon`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::balloon(data));
