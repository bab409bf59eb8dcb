//! Runs [`platform::fuzzing::rtc`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::rtc(data));
