//! Runs [`platform::fuzzing::i8042`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::i8042(data));
