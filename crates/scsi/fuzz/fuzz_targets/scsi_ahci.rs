//! Runs [`scsi::fuzzing::ahci`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| scsi::fuzzing::ahci(data));
