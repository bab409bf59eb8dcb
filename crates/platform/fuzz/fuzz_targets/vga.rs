//! Runs [`platform::fuzzing::vga`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::vga(data));
