//! Runs [`scsi::fuzzing::cdrom`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| scsi::fuzzing::cdrom(data));
