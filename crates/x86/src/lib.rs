//! What the processor manuals say: registers, MSRs, CPUID models, paging bits, exceptions and the saved CPU state.
