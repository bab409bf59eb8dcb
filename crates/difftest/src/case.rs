//! What is executed, on either side, and what came of it.

/// Where code is placed.
pub(crate) const CODE: u64 = 0x1000_0000;
/// Where data is: two writable pages, a missing one, a read-only one, a missing one.
pub(crate) const DATA: u64 = 0x2000_0000;
/// Length of the writable part.
pub(crate) const DATA_LEN: usize = 0x2000;
/// The read-only page.
pub(crate) const READ_ONLY: u64 = DATA + 0x3000;
/// Base of GS in 64-bit mode.
pub(crate) const GS_BASE: u64 = 0x12_3450;
pub(crate) const PAGE: usize = 0x1000;
/// Longest code of a case.
pub(crate) const CODE_LEN_MAX: usize = 512;
/// Bytes around the memory operand that a case sets.
pub(crate) const WINDOW_LEN: usize = 128;

/// Registers, laid out for the assembly in [`crate::host`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct State {
    /// YMM0 to YMM15.
    pub(crate) ymm: [[u64; 4]; 16],
    /// FXSAVE64 image; only the x87 part counts.
    pub(crate) fx: [u8; 512],
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) mxcsr: u32,
}

/// How many bits the code of a case has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Bits {
    /// 64-bit mode.
    B64 = 64,
    /// Compatibility mode with 32-bit code.
    B32 = 32,
}

impl Bits {
    /// How many general and vector registers there are.
    pub(crate) fn registers(self) -> usize {
        if self == Bits::B64 { 16 } else { 8 }
    }
}

/// When a case is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Until {
    /// Execution reaches the end of the code.
    End,
    /// One instruction, a branch, has executed.
    Branched,
}

/// Code and what it starts with.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Case {
    pub(crate) bits: Bits,
    pub(crate) until: Until,
    /// Its `rip` is where the code is: in the page at [`CODE`].
    pub(crate) state: State,
    pub(crate) code: [u8; CODE_LEN_MAX],
    pub(crate) code_len: u32,
    /// Offset of the window in the writable data.
    pub(crate) window_at: u32,
    pub(crate) window: [u8; WINDOW_LEN],
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Trap {
    pub(crate) vector: u32,
    /// The error code where there is one, else 0.
    pub(crate) code: u32,
    /// For page faults, the address.
    pub(crate) address: u64,
}

/// How a case ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ending {
    pub(crate) state: State,
    /// `trap` is valid.
    pub(crate) trapped: bool,
    pub(crate) trap: Trap,
    pub(crate) data: [u8; DATA_LEN],
}

impl State {
    pub(crate) const ZERO: State =
        State { ymm: [[0; 4]; 16], fx: [0; 512], gpr: [0; 16], rip: 0, rflags: 0, mxcsr: 0 };
}

impl Case {
    /// The address after the code.
    pub(crate) fn end(&self) -> u64 {
        self.state.rip + self.code_len as u64
    }
}

impl Ending {
    pub(crate) fn trap(&self) -> Option<Trap> {
        self.trapped.then_some(self.trap)
    }
}

/// What the pages hold before each case: writable data, then the read-only page.
pub(crate) fn background() -> Vec<u8> {
    let mut bytes = vec![0; DATA_LEN + PAGE];
    crate::random::Random::new(1).fill(&mut bytes);
    bytes
}
