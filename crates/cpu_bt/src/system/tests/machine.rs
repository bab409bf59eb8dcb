//! A machine with one vCPU, descriptor tables, a TSS and page tables, in a mode of choice.

use crate::cpu::Cpu;
use crate::engine;
use crate::fault::{Fault, Result};
use crate::options::Options;
use crate::regs::{RIP, RSP};
use ::cpu::{CpuIo, VmConfig};
use clock::{Clock, Timers};
use memory::Ram;
use std::sync::{Arc, Mutex};
use x86::Segment;
use x86::cpuid::Leaf;
use x86::reg::{cr0, cr4, efer, rflags};
use x86::state::{TableRegister, seg};

/// The mode that a machine starts in. Memory is flat, linear addresses are physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Real,
    /// Protected mode without paging.
    Protected {
        cpl: u8,
    },
    /// Long mode, 64-bit code.
    Long {
        cpl: u8,
    },
    /// Long mode, 32-bit code.
    Compat {
        cpl: u8,
    },
}

pub(super) const GDT: u64 = 0x1000;
pub(super) const GDT_LIMIT: u16 = 0xfff;
pub(super) const IDT: u64 = 0x2000;
pub(super) const TSS_BASE: u64 = 0x3000;
pub(super) const TSS2_BASE: u64 = 0x3400;
pub(super) const LDT_BASE: u64 = 0x3800;
/// The I/O permission map's offset in the TSS.
pub(super) const IO_MAP: u64 = 0x100;
pub(super) const TSS_LIMIT: u64 = 0x2ff;
/// Tops of stacks: of the program, of privilege level 0, and of the first interrupt stack.
pub(super) const STACK: u64 = 0x8000;
pub(super) const STACK0: u64 = 0x7000;
pub(super) const IST1: u64 = 0x9000;
pub(super) const DATA: u64 = 0xa000;
pub(super) const CODE: u64 = 0x1_0000;
/// Handlers of interrupts: that of vector n is at `HANDLERS + 16 * n`.
pub(super) const HANDLERS: u64 = 0x2_0000;
/// Where call gates lead.
pub(super) const GATE: u64 = 0x3_0000;
pub(super) const TABLES: u64 = 0x8_0000;

/// Selectors of the GDT.
pub(super) mod selector {
    pub(in super::super) const CODE32: u16 = 0x08;
    pub(in super::super) const DATA32: u16 = 0x10;
    pub(in super::super) const CODE64: u16 = 0x18;
    pub(in super::super) const USER_CODE32: u16 = 0x23;
    pub(in super::super) const USER_DATA: u16 = 0x2b;
    pub(in super::super) const USER_CODE64: u16 = 0x33;
    pub(in super::super) const CONFORMING: u16 = 0x38;
    pub(in super::super) const TSS: u16 = 0x40;
    pub(in super::super) const LDT: u16 = 0x50;
    pub(in super::super) const ABSENT: u16 = 0x60;
    pub(in super::super) const READ_ONLY: u16 = 0x68;
    pub(in super::super) const EXECUTE_ONLY: u16 = 0x70;
    pub(in super::super) const CALL_GATE: u16 = 0x7b;
    pub(in super::super) const TASK_GATE: u16 = 0x8b;
    pub(in super::super) const TSS2: u16 = 0x90;
    pub(in super::super) const CODE16: u16 = 0xa0;
    pub(in super::super) const DATA16: u16 = 0xa8;
    pub(in super::super) const ABSENT_CODE: u16 = 0xb0;
    /// Data without the accessed bit.
    pub(in super::super) const FRESH_DATA: u16 = 0xb8;
    pub(in super::super) const EXPAND_DOWN: u16 = 0xc0;
}

/// A bus that records writes and answers reads with the low bytes of the port number, repeated.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) writes: Mutex<Vec<(u16, Vec<u8>)>>,
}

impl CpuIo for Recorder {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = (port as u8).wrapping_add(index as u8);
        }
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.writes.lock().unwrap().push((port, data.to_vec()));
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        0x20
    }
}

pub(super) struct Machine {
    pub(super) cpu: Box<Cpu>,
    pub(super) bus: Recorder,
}

/// Vendors of the guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    Intel,
    Amd,
}

/// CPUID of a processor with every system feature that the engine has.
pub(super) fn cpuid(vendor: Vendor) -> Vec<Leaf> {
    let name: &[u8; 12] = match vendor {
        Vendor::Intel => b"GenuineIntel",
        Vendor::Amd => b"AuthenticAMD",
    };
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| Leaf { function, index, eax, ebx, ecx, edx };
    vec![
        leaf(0, None, [0x1f, word(0), word(8), word(4)]),
        leaf(1, None, [0x000a_20f2, 0x0000_0800, !(1 << 27), 0xffff_ffff]),
        leaf(7, Some(0), [0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]),
        leaf(0xb, Some(0), [0, 1, 0x100, 0]),
        leaf(0xd, Some(0), [7, 0, 832, 0]),
        leaf(0xd, Some(1), [5, 0, 0, 0]),
        leaf(0x1f, Some(0), [0, 1, 0x100, 0]),
        leaf(0x4000_0000, None, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x8000_0000, None, [0x8000_001e, 0, 0, 0]),
        leaf(0x8000_0001, None, [0, 0, 0xffff_ffff, 0xffff_ffff]),
        leaf(0x8000_0008, None, [0x3030, 0xffff_ffff, 0, 0]),
        leaf(0x8000_001e, None, [0, 0x100, 0, 0]),
    ]
}

/// An 8-byte descriptor with 4-KiB granularity and limit 0xfffff.
fn flat(access: u64, flags: u64) -> u64 {
    0x000f_0000_0000_ffff | access << 40 | flags << 52
}

/// The low half of a gate.
pub(super) fn gate(kind: u64, dpl: u64, selector: u16, offset: u64, extra: u64) -> u64 {
    let access = 0x80 | dpl << 5 | kind;
    offset & 0xffff | (selector as u64) << 16 | extra << 32 | access << 40 | (offset & 0xffff_0000) << 32
}

impl Machine {
    pub(super) fn new(start: Start) -> Machine {
        Machine::of(start, Vendor::Intel)
    }

    pub(super) fn of(start: Start, vendor: Vendor) -> Machine {
        Machine::with(start, cpuid(vendor), &Options::default())
    }

    /// A processor whose CPUID has only the vendor.
    pub(super) fn without_features(start: Start) -> Machine {
        Machine::with(start, cpuid(Vendor::Intel)[..1].to_vec(), &Options::default())
    }

    /// One whose engine has `options`.
    pub(super) fn with_options(start: Start, options: &Options) -> Machine {
        Machine::with(start, cpuid(Vendor::Intel), options)
    }

    fn with(start: Start, cpuid: Vec<Leaf>, options: &Options) -> Machine {
        let ram = Arc::new(Ram::new(4 << 20).unwrap());
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let vm = engine::share(VmConfig { ram, clock, timers, vcpus: 2, cpuid }, options);
        let cpu = Cpu::new(vm.clone(), 0, vm.lapics[0].clone(), vm.signals[0].clone());
        let mut machine = Machine { cpu, bus: Recorder::default() };
        machine.cpu.signals.take(u32::MAX);
        machine.write_tables(matches!(start, Start::Long { .. } | Start::Compat { .. }));
        machine.enter(start);
        machine
    }

    fn write_tables(&mut self, long: bool) {
        use selector::*;
        for (selector, descriptor) in [
            (CODE32, flat(0x9b, 0xc)),
            (DATA32, flat(0x93, 0xc)),
            (CODE64, flat(0x9b, 0xa)),
            (USER_CODE32, flat(0xfb, 0xc)),
            (USER_DATA, flat(0xf3, 0xc)),
            (USER_CODE64, flat(0xfb, 0xa)),
            (CONFORMING, flat(0x9f, if long { 0xa } else { 0xc })),
            (TSS, TSS_LIMIT | TSS_BASE << 16 | 0x89 << 40),
            (LDT, 0xff | LDT_BASE << 16 | 0x82 << 40),
            (ABSENT, flat(0x13, 0xc)),
            (READ_ONLY, flat(0x91, 0xc)),
            (EXECUTE_ONLY, flat(0x99, 0xc)),
            (CALL_GATE, gate(12, 3, if long { CODE64 } else { CODE32 }, GATE, 0)),
            (TSS2, 0x67 | TSS2_BASE << 16 | 0x89 << 40),
            (CODE16, 0xffff | 0x9b << 40),
            (DATA16, 0xffff | 0x93 << 40),
            (ABSENT_CODE, flat(0x1b, 0xc)),
            (FRESH_DATA, flat(0x92, 0xc)),
            (EXPAND_DOWN, 0x0fff | 0x97 << 40 | 4 << 52),
        ] {
            self.store(GDT + (selector & !7) as u64, descriptor);
        }
        if !long {
            self.store(GDT + (TASK_GATE & !7) as u64, gate(5, 3, TSS2, 0, 0));
        }
        // A descriptor in the LDT.
        self.store(LDT_BASE + 8, flat(0xf3, 0xc));
        for vector in 0..256u64 {
            let offset = HANDLERS + 16 * vector;
            // Only vector 0x80 may be called by user code.
            let dpl = if vector == 0x80 { 3 } else { 0 };
            if long {
                self.store(IDT + vector * 16, gate(14, dpl, CODE64, offset, 0));
                self.store(IDT + vector * 16 + 8, 0u64);
            } else {
                self.store(IDT + vector * 8, gate(14, dpl, CODE32, offset, 0));
            }
        }
        if long {
            self.store(TSS_BASE + 4, STACK0);
            self.store(TSS_BASE + 0x24, IST1);
        } else {
            self.store(TSS_BASE + 4, STACK0);
            self.store(TSS_BASE + 8, DATA32 as u64);
        }
        self.store::<u16>(TSS_BASE + 0x66, IO_MAP as u16);
        for byte in 0..=TSS_LIMIT - IO_MAP {
            self.store::<u8>(TSS_BASE + IO_MAP + byte, 0xff);
        }
        // Page tables that map the first gigabyte to itself, for everybody.
        self.store(TABLES, (TABLES + 0x1000) | 7);
        self.store(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        for index in 0..512u64 {
            self.store(TABLES + 0x2000 + 8 * index, index << 21 | 0x87);
        }
    }

    fn enter(&mut self, start: Start) {
        let cpu = &mut self.cpu;
        cpu.sys.cr0 = cr0::ET | cr0::NE;
        let cpl = match start {
            Start::Real => 0,
            Start::Protected { cpl } | Start::Long { cpl } | Start::Compat { cpl } => cpl,
        };
        cpu.regs.r[RSP] = STACK;
        cpu.regs.r[RIP] = CODE;
        let mut code = selector::CODE32;
        match start {
            Start::Real => {
                cpu.regs.seg[..6].fill(Segment::real_mode(0));
                cpu.regs.seg[seg::CS] = Segment::real_mode(CODE as u16 >> 4);
                cpu.regs.seg[seg::CS].base = CODE;
                cpu.regs.seg[seg::CS].selector = (CODE >> 4) as u16;
                cpu.regs.r[RIP] = 0;
                cpu.sys.idtr = TableRegister { base: 0, limit: 0x3ff };
                cpu.update_mode();
                return;
            }
            Start::Protected { .. } => cpu.sys.cr0 |= cr0::PE,
            Start::Long { .. } | Start::Compat { .. } => {
                cpu.sys.cr0 |= cr0::PE | cr0::PG | cr0::WP;
                cpu.sys.cr4 = cr4::PAE;
                cpu.sys.cr3 = TABLES;
                cpu.sys.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
                if matches!(start, Start::Long { .. }) {
                    code = selector::CODE64;
                }
            }
        }
        let data = match cpl {
            0 => selector::DATA32,
            _ => {
                code = if code == selector::CODE64 { selector::USER_CODE64 } else { selector::USER_CODE32 };
                selector::USER_DATA
            }
        };
        cpu.sys.gdtr = TableRegister { base: GDT, limit: GDT_LIMIT };
        cpu.sys.idtr = TableRegister { base: IDT, limit: 0xfff };
        let tss = self.load::<u64>(GDT + selector::TSS as u64);
        let cpu = &mut self.cpu;
        cpu.sys.tr = Segment::from_descriptor(selector::TSS, tss | 2 << 40);
        for index in 0..6 {
            let selector = if index == seg::CS { code } else { data };
            let descriptor = cpu.ram.load::<u64>(GDT + (selector & !7) as u64).unwrap();
            cpu.regs.seg[index] = Segment::from_descriptor(selector, descriptor);
        }
        cpu.regs.rflags = rflags::FIXED;
        cpu.update_mode();
    }

    /// Stores at a physical address.
    pub(super) fn store<T: crate::int::Int>(&mut self, gpa: u64, value: T) {
        use memory::{Bytes, GuestAddress};
        let bytes = &value.to_u64().to_le_bytes()[..T::BYTES];
        self.cpu.ram.guest().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    /// Loads from a physical address.
    pub(super) fn load<T: crate::int::Int>(&self, gpa: u64) -> T {
        use memory::{Bytes, GuestAddress};
        let mut bytes = [0; 8];
        self.cpu.ram.guest().read_slice(&mut bytes[..T::BYTES], GuestAddress(gpa)).unwrap();
        T::from_u64(u64::from_le_bytes(bytes))
    }

    /// The doublewords or quadwords from the top of the stack upwards.
    pub(super) fn stack<T: crate::int::Int, const N: usize>(&self) -> [T; N] {
        let base = if self.cpu.mode.is_64() { 0 } else { self.cpu.regs.seg[seg::SS].base };
        let top = base + self.cpu.regs.r[RSP];
        std::array::from_fn(|index| self.load::<T>(top + (index * T::BYTES) as u64))
    }

    /// Executes one instruction given as bytes at the present place; a fault is returned, not delivered.
    pub(super) fn run(&mut self, code: &[u8]) -> Result<()> {
        let at = self.linear_rip();
        for (gpa, byte) in (at..).zip(code) {
            self.store(gpa, *byte);
        }
        self.step()
    }

    /// Linear address of the next instruction.
    pub(super) fn linear_rip(&self) -> u64 {
        let rip = self.cpu.regs.r[RIP];
        match self.cpu.mode.is_64() {
            true => rip,
            false => self.cpu.regs.seg[seg::CS].base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// Executes the next instruction; a fault is returned, not delivered.
    pub(super) fn step(&mut self) -> Result<()> {
        let linear = self.linear_rip();
        let start = self.cpu.regs.r[RIP];
        self.cpu.with_io(&self.bus, |cpu| {
            let block = cpu.find_block(linear)?;
            let op = &block.ops()[0];
            cpu.regs.r[RIP] = start.wrapping_add(op.len as u64);
            match (op.run)(cpu, op) {
                Ok(_) => Ok(()),
                Err(fault) if fault.is_leave() => Ok(()),
                Err(fault) => {
                    cpu.regs.r[RIP] = start;
                    Err(fault)
                }
            }
        })
    }

    /// Delivers an exception.
    pub(super) fn raise(&mut self, fault: Fault) {
        self.cpu.with_io(&self.bus, |cpu| cpu.raise(fault));
    }

    /// Everything a fault must leave alone.
    pub(super) fn snapshot(&self) -> ([u64; 18], u64, [Segment; 7], [u64; 4]) {
        let (regs, sys) = (&self.cpu.regs, &self.cpu.sys);
        (regs.r, regs.rflags, regs.seg, [sys.cr0, sys.cr3, sys.cr4, sys.efer])
    }

    /// Executes one instruction that has to fault and leave everything as it was.
    pub(super) fn faults(&mut self, code: &[u8]) -> Fault {
        let before = self.snapshot();
        let fault = self.run(code).expect_err("the instruction faults");
        assert_eq!(self.snapshot(), before, "{code:02x?} changed something before it faulted");
        fault
    }
}
