//! Runs [`platform::fuzzing::pci`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::pci(data));
