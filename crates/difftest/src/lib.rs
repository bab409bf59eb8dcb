//! Differential tests of CPU engines against the host processor.
