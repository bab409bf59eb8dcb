//! Fuzz targets as plain functions: each reads `data` as a script of what a hostile guest does to a device,
//! and of the time that passes.
//!
//! Nothing may panic or hang. Beside that each target checks what must hold in every state that a guest can
//! reach: that the state can be saved and restored into a fresh device, which then answers the same; and
//! that announced events (the next interrupt, the next edge) come exactly when they were announced.
//!
//! The `fuzz` folder of this crate runs them under a fuzzer; unit tests run them on pseudo-random
//! scripts, `FUZZ_SCALE` (an environment variable) times as many as usual.

pub(crate) mod machine;
mod models;
mod script;

pub use machine::{fw_cfg, pci, platform};
pub use models::{acpi_pm, i8042, ioapic, keyboard, pic, pit, rtc, serial, vga};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small generator (xorshift64*), so that every run tries the same scripts.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        pub(crate) fn script(&mut self) -> Vec<u8> {
            let len = self.next() % 600;
            // Half of the bytes are small or extreme, which is where registers react.
            (0..len)
                .map(|_| match self.next() >> 32 {
                    word if word & 3 == 0 => (word >> 8) as u8 & 0x0f,
                    word if word & 3 == 1 => [0xff, 0x80, 0x20, 0x01][(word >> 8) as usize & 3],
                    word => (word >> 8) as u8,
                })
                .collect()
        }
    }

    /// Runs so many scripts, or `FUZZ_SCALE` times as many.
    fn run(seed: u64, scripts: usize, target: fn(&[u8])) {
        let scale = std::env::var("FUZZ_SCALE").map_or(1, |scale| scale.parse().expect("a number"));
        let mut random = Random(seed);
        for _ in 0..scripts * scale {
            target(&random.script());
        }
    }

    #[test]
    fn serial_withstands_random_scripts() {
        run(1, 3000, serial);
    }

    #[test]
    fn rtc_withstands_random_scripts() {
        run(2, 3000, rtc);
    }

    #[test]
    fn pic_withstands_random_scripts() {
        run(3, 3000, pic);
    }

    #[test]
    fn pit_withstands_random_scripts() {
        run(4, 3000, pit);
    }

    #[test]
    fn ioapic_withstands_random_scripts() {
        run(5, 3000, ioapic);
    }

    #[test]
    fn i8042_withstands_random_scripts() {
        run(6, 3000, i8042);
    }

    #[test]
    fn keyboard_withstands_random_scripts() {
        run(11, 3000, keyboard);
    }

    #[test]
    fn vga_withstands_random_scripts() {
        run(12, 200, vga);
    }

    #[test]
    fn acpi_pm_withstands_random_scripts() {
        run(7, 3000, acpi_pm);
    }

    #[test]
    fn fw_cfg_withstands_random_scripts() {
        run(8, 1000, fw_cfg);
    }

    #[test]
    fn pci_withstands_random_scripts() {
        run(9, 1000, pci);
    }

    #[test]
    fn the_whole_platform_withstands_random_scripts() {
        run(10, 300, platform);
    }
}
