//! Runs [`agent_client::fuzzing::agent`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agent_client::fuzzing::agent(data));
