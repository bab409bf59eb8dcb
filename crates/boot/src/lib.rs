//! Loaders for kernels, ACPI tables and the initial register state.
