//! Runs [`image::fuzzing::foreign_files`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::fuzzing::foreign_files(data));
