//! A machine of a few vCPUs in 64-bit supervisor mode, without devices.

use crate::cpu::Cpu;
use crate::engine;
use crate::options::{Jit, Options, Stress};
use crate::regs::{RIP, RSP};
use crate::signals::{Signals, signal};
use crate::vm::VmShared;
use ::cpu::{CpuIo, VmConfig, VmExit};
use clock::{Clock, Timers};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::{Bytes, GuestAddress, Ram};
use std::sync::Arc;
use x86::Segment;
use x86::reg::{cr0, cr4, efer, rflags};
use x86::segment::access;
use x86::state::{TableRegister, seg};

/// Linear addresses are physical ones below 8 MiB; [`HIGH`] leads to [`FIRST`] at first.
pub(super) const CODE: u64 = 0x1_0000;
pub(super) const DATA: u64 = 0x10_0000;
pub(super) const HANDLERS: u64 = 0x2_0000;
pub(super) const IDT: u64 = 0x2000;
/// A page that can be mapped elsewhere, and its page-table entry.
pub(super) const HIGH: u64 = 0x4000_0000;
pub(super) const HIGH_ENTRY: u64 = TABLES + 0x4000;
pub(super) const FIRST: u64 = 0x3_0000;
pub(super) const SECOND: u64 = 0x3_1000;
const GDT: u64 = 0x1000;
const TABLES: u64 = 0x8_0000;
const STACKS: u64 = 0x60_0000;
const RAM_SIZE: u64 = 8 << 20;

/// Port 0xf4 ends the vCPU that writes to it.
struct StopPort<'a>(&'a Signals);

impl CpuIo for StopPort<'_> {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, port: u16, _data: &[u8]) {
        if port == 0xf4 {
            self.0.raise(signal::KICK);
        }
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        0x20
    }
}

/// Ordinary options (translating at once), then each forced mode, then the interpreter and lock-step.
pub(super) fn all_options() -> Vec<Options> {
    let hot = Options { hot: 0, ..Options::default() };
    let stress = |one_tlb_entry, flush_at_switch| Stress { one_tlb_entry, flush_at_switch };
    vec![
        hot.clone(),
        Options { hot: 1, code_cache_size_max: 0, ..Options::default() },
        Options { stress: stress(true, false), ..hot.clone() },
        Options { stress: stress(true, true), exact_flags: true, ..hot.clone() },
        Options { jit: Jit::Off, ..Options::default() },
        Options { jit: Jit::Lockstep, ..hot },
    ]
}

pub(super) struct Smp {
    pub(super) vm: Arc<VmShared>,
    pub(super) cpus: Vec<Box<Cpu>>,
}

impl Smp {
    pub(super) fn new(vcpus: u32, options: &Options) -> Smp {
        let ram = Arc::new(Ram::new(RAM_SIZE).unwrap());
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let cpuid = x86::cpuid::build("host", vcpus, 1_000_000_000).unwrap();
        let vm = engine::share(VmConfig { ram, clock, timers, vcpus, cpuid }, options);
        let mut cpus: Vec<_> = (0..vcpus)
            .map(|id| {
                Cpu::new(vm.clone(), id, vm.lapics[id as usize].clone(), vm.signals[id as usize].clone())
            })
            .collect();
        let mut smp = Smp { vm, cpus: Vec::new() };
        smp.write_tables();
        for (id, cpu) in cpus.iter_mut().enumerate() {
            start(cpu, STACKS + 0x1_0000 * (id as u64 + 1));
        }
        smp.cpus = cpus;
        smp
    }

    fn write_tables(&self) {
        self.store(TABLES, (TABLES + 0x1000) | 7);
        self.store(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        for index in 0..4 {
            self.store(TABLES + 0x2000 + 8 * index, index << 21 | 0x87);
        }
        self.store(TABLES + 0x1008, (TABLES + 0x3000) | 7);
        self.store(TABLES + 0x3000, HIGH_ENTRY | 7);
        self.store(HIGH_ENTRY, FIRST | 7);
        self.store(GDT + 8, 0x00af_9b00_0000_ffff);
        self.store(GDT + 16, 0x00cf_9300_0000_ffff);
        for vector in 0..256u64 {
            let offset = HANDLERS + 16 * vector;
            let low = offset & 0xffff | 8 << 16 | 0x8e << 40 | (offset & 0xffff_0000) << 32;
            self.store(IDT + vector * 16, low);
            self.store(IDT + vector * 16 + 8, 0);
        }
    }

    pub(super) fn store(&self, gpa: u64, value: u64) {
        self.vm.ram.guest().write_slice(&value.to_le_bytes(), GuestAddress(gpa)).unwrap();
    }

    pub(super) fn load(&self, gpa: u64) -> u64 {
        self.vm.ram.load::<u64>(gpa).unwrap()
    }

    /// Assembles at a physical address that is also the linear one.
    pub(super) fn put(&self, at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut a = CodeAssembler::new(64).unwrap();
        write(&mut a).unwrap();
        let code = a.assemble(at).unwrap();
        self.vm.ram.guest().write_slice(&code, GuestAddress(at)).unwrap();
    }

    /// The code of a vCPU; it ends by itself behind what is written here.
    pub(super) fn program(
        &mut self,
        id: usize,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) {
        let at = CODE + 0x2000 * id as u64;
        self.put(at, |a| {
            write(a)?;
            a.out(0xf4, al)
        });
        self.cpus[id].regs.r[RIP] = at;
    }

    /// Runs all vCPUs until each has ended; `meanwhile` runs beside them until it returns.
    pub(super) fn run(&mut self, meanwhile: impl FnOnce(&VmShared)) {
        let vm = self.vm.clone();
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.cpus.iter_mut().map(|cpu| scope.spawn(move || run(cpu))).collect();
            meanwhile(&vm);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}

fn run(cpu: &mut Cpu) {
    crate::jit::runtime::use_vcpu(&raw mut *cpu).unwrap();
    let signals = cpu.signals.clone();
    let exit = cpu.with_io(&StopPort(&signals), Cpu::execute);
    if let Some(failure) = cpu.failure.take() {
        panic!("{failure}");
    }
    assert_eq!(exit, VmExit::Kicked);
}

fn start(cpu: &mut Cpu, stack: u64) {
    cpu.wait_for_sipi = false;
    cpu.signals.take(u32::MAX);
    cpu.sys.cr0 = cr0::ET | cr0::NE | cr0::MP | cr0::PE | cr0::PG | cr0::WP;
    cpu.sys.cr4 = cr4::PAE | cr4::OSFXSR;
    cpu.sys.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    cpu.sys.cr3 = TABLES;
    cpu.sys.gdtr = TableRegister { base: GDT, limit: 0xff };
    cpu.sys.idtr = TableRegister { base: IDT, limit: 0xfff };
    let both = access::PRESENT | access::NOT_SYSTEM | access::ACCESSED | access::GRANULARITY;
    let segment = |selector, access| Segment { base: 0, limit: 0xffff_ffff, selector, access: access | both };
    cpu.regs.seg[..6].fill(segment(16, access::WRITABLE | access::DEFAULT_BIG));
    cpu.regs.seg[seg::CS] = segment(8, access::CODE | access::READABLE | access::LONG);
    cpu.regs.rflags = rflags::FIXED;
    cpu.regs.r[RSP] = stack;
    cpu.flush_tlb_all();
    cpu.update_mode();
}
