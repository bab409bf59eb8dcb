//! Runs [`api::image::fuzz`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| api::image::fuzz(data));
