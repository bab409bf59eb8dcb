//! Runs [`platform::fuzzing::acpi_pm`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platform::fuzzing::acpi_pm(data));
