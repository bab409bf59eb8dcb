//! Exception vectors (SDM vol. 3A, table 6-1).

/// An exception or the NMI.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87FloatingPoint = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    SimdFloatingPoint = 19,
    ControlProtection = 21,
}

impl Vector {
    /// Whether the processor pushes an error code with it.
    pub fn has_error_code(self) -> bool {
        use Vector::*;
        matches!(
            self,
            DoubleFault
                | InvalidTss
                | SegmentNotPresent
                | StackFault
                | GeneralProtection
                | PageFault
                | AlignmentCheck
                | ControlProtection
        )
    }

    /// Whether it is "contributory" for double faults (SDM vol. 3A, table 6-4).
    pub fn is_contributory(self) -> bool {
        use Vector::*;
        matches!(self, DivideError | InvalidTss | SegmentNotPresent | StackFault | GeneralProtection)
    }
}

/// Bits of a page fault's error code (SDM vol. 3A, §4.7).
#[allow(missing_docs)]
pub mod page_fault {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}
