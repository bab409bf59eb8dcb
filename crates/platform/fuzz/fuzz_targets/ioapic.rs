//! Runs [`platform::fuzzing::ioapic`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::ioapic(data));
