//! Runs [`scsi::fuzzing::disk`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| scsi::fuzzing::disk(data));
