//! The reset control register of PC chipsets at port 0xCF9 (Intel ICH9 data sheet, §13.7.5).
//!
//! The port lies inside the range of the PCI configuration address register, which passes byte accesses
//! on to it.

use std::sync::atomic::{AtomicU8, Ordering};

/// The port. FADT `RESET_REG`.
pub const PORT: u16 = 0xcf9;
/// The value that resets. FADT `RESET_VALUE`.
pub const RESET_VALUE: u8 = 0x06;

/// The kind of reset is "hard".
const SYSTEM: u8 = 1 << 1;
/// A reset happens when this bit rises.
const CPU: u8 = 1 << 2;
/// Power is cycled.
const FULL: u8 = 1 << 3;

/// The reset control register.
pub struct ResetControl {
    value: AtomicU8,
    on_reset: Box<dyn Fn() + Send + Sync>,
}

impl ResetControl {
    /// Creates the register. `on_reset` is called on the thread of the vCPU that asked.
    pub fn new(on_reset: impl Fn() + Send + Sync + 'static) -> ResetControl {
        ResetControl { value: AtomicU8::new(0), on_reset: Box::new(on_reset) }
    }

    /// Reads the register.
    pub fn read(&self) -> u8 {
        self.value.load(Ordering::Relaxed)
    }

    /// Writes the register: the reset bit's rising edge resets, and the register is as new then.
    pub fn write(&self, value: u8) {
        let value = value & (SYSTEM | CPU | FULL);
        let old = self.value.swap(value, Ordering::Relaxed);
        if value & !old & CPU != 0 {
            self.value.store(0, Ordering::Relaxed);
            (self.on_reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_rising_reset_bit_resets() {
        let resets = Arc::new(AtomicU32::new(0));
        let count = resets.clone();
        let control = ResetControl::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for (value, expected) in [(0x02, 0), (0x06, 1), (0x0e, 2), (0x0a, 2), (0x04, 3)] {
            control.write(value);
            assert_eq!(resets.load(Ordering::Relaxed), expected, "{value:#x}");
        }
        control.write(0xfa);
        assert_eq!(control.read(), 0x0a);
    }
}
