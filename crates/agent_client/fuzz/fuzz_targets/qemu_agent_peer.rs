//! Runs [`agent_client::fuzzing::qemu_agent`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agent_client::fuzzing::qemu_agent(data));
