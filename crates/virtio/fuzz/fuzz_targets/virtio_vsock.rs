//! Runs [`virtio::fuzzing::vsock`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::vsock(data));
