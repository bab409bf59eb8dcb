//! Bodies of the fuzz targets: plain functions of bytes that must neither panic nor hang.

use crate::{Inputs, Kernel, Method, Plan};
use memory::Ram;

/// Reads `data` as a kernel file, plans its boot in every way, and loads it.
pub fn kernel(data: &[u8]) {
    let ram = Ram::new(64 << 20).expect("64 MiB are available");
    for method in [Method::Auto, Method::Direct, Method::SelfDecompressing, Method::Pvh] {
        let Ok(kernel) = Kernel::from_bytes(data.to_vec()) else { return };
        let inputs = Inputs { ram: &ram, initrd_size: Some(1 << 20), command_line: "console=ttyS0", method };
        if let Ok(plan) = Plan::new(kernel, inputs) {
            let _ = plan.describe();
            let _ = plan.load_kernel(&ram);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::image::{bzimage, elf};

    /// A small generator of repeatable pseudo-random numbers (xorshift64).
    struct Random(u64);
    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    #[test]
    fn mutated_kernels_are_handled() {
        let inner = elf::tests::elf(&[0x90; 64], 0x2000, 0x10_0000, Some(0x10_0000));
        let mut packed = b"\x02\x21\x4c\x18".to_vec();
        packed.extend_from_slice(&inner);
        let seeds = [
            inner.clone(),
            bzimage::tests::bzimage(&inner),
            bzimage::tests::bzimage(&packed),
            bzimage::tests::bzimage(b"\x28\xb5\x2f\xfd\0\x01\0\0\0\0\x10\0\0\0"),
            bzimage::tests::bzimage(b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x10\0\0\0"),
        ];
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..3000 {
            let mut data = seeds[round % seeds.len()].clone();
            for _ in 0..1 + random.below(8) {
                // Headers are where the decisions are.
                let area = if random.below(2) == 0 { 0x280.min(data.len()) } else { data.len() };
                let at = random.below(area);
                data[at] = [0, 1, 0x7f, 0x80, 0xff, random.below(256) as u8][random.below(6)];
            }
            if random.below(10) == 0 {
                data.truncate(random.below(data.len()));
            }
            super::kernel(&data);
        }
    }
}
