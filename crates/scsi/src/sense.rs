//! Why a command failed (SPC-4, §4.5).

use serde::{Deserialize, Serialize};

/// Sense key, additional code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    /// The additional sense code.
    pub code: u8,
    /// Its qualifier.
    pub qualifier: u8,
}

impl Sense {
    /// All is well.
    pub const NONE: Sense = Sense::new(0, 0, 0);
    /// There is no disc.
    pub const NO_MEDIUM: Sense = Sense::new(2, 0x3a, 0);
    /// The disc cannot be read.
    pub const READ_ERROR: Sense = Sense::new(3, 0x11, 0);
    /// There is no such command.
    pub const UNKNOWN_COMMAND: Sense = Sense::new(5, 0x20, 0);
    /// Beyond the disc's end.
    pub const OUT_OF_RANGE: Sense = Sense::new(5, 0x21, 0);
    /// A field of the command's data cannot be.
    pub const BAD_PARAMETER: Sense = Sense::new(5, 0x26, 0);
    /// What is only read cannot be written to.
    pub const WRITE_PROTECTED: Sense = Sense::new(7, 0x27, 0);
    /// What was written could not be stored.
    pub const WRITE_ERROR: Sense = Sense::new(3, 0x0c, 0);
    /// There is nothing at that number.
    pub const NO_SUCH_UNIT: Sense = Sense::new(5, 0x25, 0);
    /// A field of the command cannot be.
    pub const BAD_FIELD: Sense = Sense::new(5, 0x24, 0);
    /// The guest does not let go of the disc.
    pub const LOCKED: Sense = Sense::new(5, 0x53, 2);
    /// There is another disc, perhaps.
    pub const CHANGED: Sense = Sense::new(6, 0x28, 0);
    /// The drive was reset.
    pub const WAS_RESET: Sense = Sense::new(6, 0x29, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Sense {
        Sense { key, code, qualifier }
    }

    /// As data in the fixed format (§4.5.3).
    pub fn fixed(self) -> [u8; 18] {
        let mut data = [0; 18];
        (data[0], data[2], data[7], data[12], data[13]) = (0x70, self.key, 10, self.code, self.qualifier);
        data
    }
}
