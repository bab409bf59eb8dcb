//! What the processor manuals say: registers and their bits, model-specific registers, descriptors,
//! paging, exceptions, local APIC registers, CPUID models, and the saved state of a processor.
//!
//! Everything here is data and pure functions: no I/O, no clock, no guest memory. Both CPU engines and
//! the loaders use it, so that they agree.
//!
//! References: "SDM" is Intel 64 and IA-32 Architectures Software Developer's Manual; "APM" is AMD64
//! Architecture Programmer's Manual.

pub mod apic;
pub mod cpuid;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod reg;
pub mod segment;
pub mod state;

pub use exception::Vector;
pub use segment::Segment;
pub use state::CpuState;
