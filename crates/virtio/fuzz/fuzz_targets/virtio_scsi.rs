//! Runs [`virtio::fuzzing::scsi`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzzing::scsi(data));
