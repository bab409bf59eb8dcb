//! The saved state of a processor: one format for every engine.

use crate::segment::Segment;
use serde::{Deserialize, Serialize};

/// Version of [`CpuState`]. Raise it when a field changes its meaning; new fields get defaults instead.
pub const VERSION: u32 = 1;

/// Indices into [`CpuState::gpr`] and the order of register numbers in encodings.
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Indices into [`CpuState::segments`] and segment register numbers in encodings.
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Everything that a processor remembers between two instructions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// [`VERSION`] when written.
    pub version: u32,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// Extended feature enables.
    pub efer: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Other model-specific registers by number, ascending.
    pub msrs: Vec<(u32, u64)>,
    /// XSAVE area in the standard format: x87, SSE and whatever else `xcr0` may enable.
    pub xsave: Vec<u8>,
    /// Local APIC.
    pub lapic: LapicState,
    /// Events that wait to be delivered.
    pub pending: PendingEvents,
    /// Whether the processor runs.
    pub mp_state: MpState,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Registers of the local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// IA32_APIC_BASE, with the x2APIC and enable bits.
    pub base: u64,
    /// The 64 registers at 16-byte strides (offset 0x000 to 0x3f0), low 32 bits of each.
    pub registers: Vec<u32>,
    /// IA32_TSC_DEADLINE; 0 when not armed.
    pub tsc_deadline: u64,
    /// Guest time in nanoseconds at which the initial count was last written, for the count-down modes.
    pub timer_start_ns: u64,
}

/// Events that wait to be delivered at the next instruction boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvents {
    /// A non-maskable interrupt is pending.
    pub nmi: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Interrupts are held off for one instruction after STI or MOV SS.
    pub interrupt_shadow: bool,
    /// An exception whose delivery has begun: vector, error code and, for page faults, address.
    pub exception: Option<(u8, Option<u32>, u64)>,
    /// An interrupt of the legacy controller that was acknowledged there and not delivered yet: its vector.
    #[serde(default)]
    pub interrupt: Option<u8>,
}

/// Whether a processor runs (SDM vol. 3A, §8.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MpState {
    /// Executes instructions.
    #[default]
    Runnable,
    /// Waits for an interrupt after HLT.
    Halted,
    /// Waits for a start-up message after INIT.
    WaitForSipi,
}
