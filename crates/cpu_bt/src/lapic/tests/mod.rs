//! The local APIC as guests, devices and other vCPUs meet it.

mod guest;
mod hostile;
mod legacy;
mod messages;
mod modes;
mod priorities;
mod registers;
mod state;
mod threads;
mod timer;

use super::message::{Destination, Message};
use super::*;
use crate::cpu::Cpu;
use crate::vm::VmShared;
use ::cpu::{CpuIo, VmConfig};
use clock::Nanos;
use memory::Ram;
use std::time::{Duration, Instant};
use x86::apic::{base, delivery};
use x86::msr;
use x86::state::LapicState;

/// What a test waits for takes at most this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Divide configuration: one count is one nanosecond.
const DIVIDE_BY_1: u32 = 0xb;
/// Guest time that does not pass while a test runs.
const FAR: Nanos = 3_600_000_000_000;

/// Notes ended interrupts; answers acknowledgements with 0x2f.
#[derive(Default)]
struct Io {
    ended: Mutex<Vec<u8>>,
    acknowledged: AtomicU32,
}

impl CpuIo for Io {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().unwrap().push(vector);
    }
    fn pic_acknowledge(&self) -> u8 {
        self.acknowledged.fetch_add(1, SeqCst);
        0x2f
    }
}

pub(super) struct Machine {
    pub(super) vm: Arc<VmShared>,
    pub(super) cpus: Vec<Box<Cpu>>,
    io: Io,
}

impl Machine {
    /// A machine whose APICs software has enabled, in xAPIC mode.
    pub(super) fn new(vcpus: u32) -> Machine {
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let ram = Arc::new(Ram::new(2 << 20).unwrap());
        let vm =
            crate::engine::share(VmConfig { ram, clock, timers, vcpus, cpuid: vec![] }, &Default::default());
        let make = |id: u32| {
            let (lapic, signals) = (vm.lapics[id as usize].clone(), vm.signals[id as usize].clone());
            Cpu::new(vm.clone(), id, lapic, signals)
        };
        let mut machine = Machine { cpus: (0..vcpus).map(make).collect(), vm: vm.clone(), io: Io::default() };
        for id in 0..vcpus as usize {
            machine.write(id, reg::SVR, 0x1ff);
        }
        machine
    }

    fn x2apic(vcpus: u32) -> Machine {
        let mut machine = Machine::new(vcpus);
        for id in 0..vcpus as usize {
            let value = machine.vm.lapics[id].base() | base::X2APIC;
            machine.wrmsr(id, msr::APIC_BASE, value);
        }
        machine
    }

    fn with<R>(&mut self, id: usize, f: impl FnOnce(&mut Cpu) -> R) -> R {
        self.cpus[id].with_io(&self.io, f)
    }

    fn write(&mut self, id: usize, register: u32, value: u32) {
        self.with(id, |cpu| cpu.lapic_mmio_write(register, &value.to_le_bytes()));
    }

    fn read(&mut self, id: usize, register: u32) -> u32 {
        let mut bytes = [0xaa; 4];
        self.with(id, |cpu| cpu.lapic_mmio_read(register, &mut bytes));
        u32::from_le_bytes(bytes)
    }

    /// Writes a register that takes the value.
    fn wrmsr(&mut self, id: usize, number: u32, value: u64) {
        self.with(id, |cpu| cpu.lapic_write_msr(number, value)).unwrap();
    }

    fn next(&mut self, id: usize) -> Option<u8> {
        self.vm.signals[id].take(signal::INTERRUPT);
        self.with(id, Cpu::next_interrupt)
    }

    fn pending(&self, id: usize) -> u32 {
        self.vm.signals[id].pending()
    }

    /// Which vCPUs have this vector requested; takes it from them.
    fn receivers(&self, vector: u8) -> Vec<usize> {
        let (word, bit) = (vector as usize / 32, 1 << (vector % 32));
        let requested = |lapic: &Arc<Lapic>| {
            lapic.registers[(reg::IRR >> 4) as usize + word].fetch_and(!bit, SeqCst) & bit != 0
        };
        (0..self.vm.lapics.len()).filter(|id| requested(&self.vm.lapics[*id])).collect()
    }

    /// Which vCPUs have been signalled; takes the signal from them.
    fn signalled(&self, bits: u32) -> Vec<usize> {
        (0..self.vm.signals.len()).filter(|id| self.vm.signals[*id].take(bits) != 0).collect()
    }

    /// Waits until a vCPU has a request.
    fn wait(&self, id: usize, bits: u32) {
        let start = Instant::now();
        while self.pending(id) & bits == 0 {
            assert!(start.elapsed() < PATIENCE, "nothing came");
            self.vm.signals[id].sleep(!bits, Some(Duration::from_millis(100)));
        }
    }

    fn now(&self) -> Nanos {
        self.vm.clock.now()
    }
}
