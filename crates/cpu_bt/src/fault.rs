//! What ends an instruction early.

use x86::Vector;

/// An exception that an instruction raised before it changed anything, or the wish to leave guest
/// execution. One word, so that a `Result` of it travels in a register.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Fault(u32);

pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

const HAS_CODE: u32 = 1 << 8;
const LEAVE: u32 = 1 << 9;

impl Fault {
    /// Leave guest execution: `Cpu::exit` says why. The instruction is complete.
    pub(crate) const LEAVE: Fault = Fault(LEAVE);
    /// #UD.
    pub(crate) const UNDEFINED: Fault = Fault(Vector::InvalidOpcode as u32);
    /// #NM.
    pub(crate) const NO_FPU: Fault = Fault(Vector::DeviceNotAvailable as u32);
    /// #GP(0).
    pub(crate) const GP0: Fault = Fault::with_code(Vector::GeneralProtection, 0);
    /// #SS(0).
    pub(crate) const SS0: Fault = Fault::with_code(Vector::StackFault, 0);
    /// #DE.
    pub(crate) const DIVIDE: Fault = Fault(Vector::DivideError as u32);

    /// An exception without error code.
    pub(crate) const fn new(vector: Vector) -> Fault {
        Fault(vector as u32)
    }

    /// An exception with error code.
    pub(crate) const fn with_code(vector: Vector, code: u16) -> Fault {
        Fault(vector as u32 | HAS_CODE | (code as u32) << 16)
    }

    /// #GP with a selector as error code.
    pub(crate) const fn gp(selector: u16) -> Fault {
        Fault::with_code(Vector::GeneralProtection, selector & !3)
    }

    /// The vector.
    pub(crate) fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The error code, if this exception has one.
    pub(crate) fn code(self) -> Option<u16> {
        (self.0 & HAS_CODE != 0).then_some((self.0 >> 16) as u16)
    }

    /// Whether this is [`Fault::LEAVE`].
    pub(crate) fn is_leave(self) -> bool {
        self.0 & LEAVE != 0
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is_leave() {
            true => f.write_str("leave"),
            false => write!(f, "exception {} ({:x?})", self.vector(), self.code()),
        }
    }
}
