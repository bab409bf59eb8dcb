//! Guests that write nonsense.

use super::*;

/// Xorshift: the same sequence in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn whatever_a_guest_writes_the_apic_stands_it() {
    for seed in 1..=8 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let mut machine = Machine::new(3);
        for _ in 0..4000 {
            let id = (random.next() % 3) as usize;
            let value = match random.next() % 4 {
                0 => random.next(),
                1 => random.next() & 0xff,
                2 => 1 << (random.next() % 64),
                _ => random.next() & random.next() & random.next(),
            };
            match random.next() % 10 {
                0..=2 => machine.write(id, (random.next() & 0xff0) as u32, value as u32),
                3 => {
                    let mut bytes = vec![0; (random.next() % 9) as usize];
                    let offset = (random.next() & 0xfff) as u32;
                    machine.with(id, |cpu| cpu.lapic_mmio_read(offset, &mut bytes));
                }
                4 => {
                    let number = 0x800 + (random.next() & 0x3f) as u32;
                    let _ = machine.with(id, |cpu| cpu.lapic_write_msr(number, value));
                    let _ = machine.with(id, |cpu| cpu.lapic_read_msr(number));
                }
                5 => {
                    let base = 0xfee0_0000 | value & 0xd00;
                    let _ = machine.with(id, |cpu| cpu.lapic_write_msr(msr::APIC_BASE, base));
                }
                6 => {
                    let number = 0x4b56_4d00 + (random.next() % 8) as u32;
                    let _ = machine.with(id, |cpu| cpu.kvm_write_msr(number, value & 0x3f_ffff));
                }
                7 => machine.vm.deliver_message(0xfee0_0000 | value & 0x1f_ffff, random.next() as u32),
                8 => {
                    let _ = machine.with(id, |cpu| cpu.lapic_write_msr(msr::TSC_DEADLINE, value));
                }
                _ => {
                    machine.vm.set_pic_line(value & 1 != 0);
                    let _ = machine.next(id);
                }
            }
        }
        for lapic in &machine.vm.lapics {
            // What comes out can go in again.
            lapic.restore(&lapic.save()).unwrap();
        }
    }
}
