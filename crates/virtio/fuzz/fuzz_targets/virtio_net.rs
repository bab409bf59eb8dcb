//! Runs [`virtio::fuzzing::net`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::net(data));
