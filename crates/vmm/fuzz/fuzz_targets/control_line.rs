//! Runs [`vmm::fuzzing::control_line`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm::fuzzing::control_line(data));
