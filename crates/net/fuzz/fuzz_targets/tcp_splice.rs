//! Runs [`net::fuzzing::tcp_splice`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| net::fuzzing::tcp_splice(data));
