//! Runs [`platform::fuzzing::fw_cfg`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::fw_cfg(data));
