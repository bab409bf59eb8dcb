//! Runs [`virtio::fuzzing::console`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::console(data));
