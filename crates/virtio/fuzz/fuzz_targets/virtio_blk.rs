//! Runs [`virtio::fuzzing::blk`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::blk(data));
