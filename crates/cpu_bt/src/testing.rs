//! A vCPU that executes one instruction at a time and tells how it ended, for tests that compare engines
//! and processors. Built with feature `testing` only.

use crate::block::{Detail, Flow, Op, TRANSLATED};
use crate::cpu::Cpu;
use crate::engine;
use crate::fault::{Fault, Result};
use crate::native;
use crate::options::Options;
use crate::regs::RIP;
use clock::{Clock, Timers};
use cpu::{CpuIo, VmConfig};
use iced_x86::{Decoder, DecoderOptions};
use memory::{Bytes, GuestAddress, PAGE_SIZE, Ram};
use std::rc::Rc;
use std::sync::Arc;
use x86::Segment;
use x86::cpuid::Leaf;
use x86::paging::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE};
use x86::reg::{cr0, cr4, efer, rflags, xcr0};
use x86::segment::access;
use x86::state::seg;

/// The mode that a [`Machine`] executes in. All but the last are at privilege level 3, with paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode.
    Long64,
    /// Compatibility mode, 32-bit code, flat segments.
    Compat32,
    /// Compatibility mode, 16-bit code, segments based at 0.
    Compat16,
    /// Real-address mode: physical addresses, segments based at 0.
    Real16,
}

/// A page of memory at a linear address.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Linear address, below 4 GiB.
    pub linear: u64,
    /// User code may write it.
    pub writable: bool,
}

/// Registers that user code sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// MXCSR.
    pub mxcsr: u32,
    /// YMM0 to YMM15.
    pub ymm: [[u64; 4]; 16],
    /// The x87 part of an FXSAVE64 image: its first 160 bytes, those of MXCSR not used.
    pub x87: [u8; 160],
}

/// How an instruction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It executed (or one iteration of it, if it repeats).
    Completed,
    /// It raised an exception.
    Exception {
        /// The vector.
        vector: u8,
        /// The error code, if it has one.
        code: Option<u16>,
        /// For page faults, the linear address.
        address: u64,
    },
    /// The engine wants to leave guest execution, and why.
    Left(String),
}

/// A single-vCPU machine.
pub struct Machine {
    cpu: Box<Cpu>,
    mode: Mode,
    /// Linear and physical addresses of the pages.
    pages: Vec<(u64, u64)>,
    natively: bool,
}

/// A bus without devices.
struct NoDevices;

impl CpuIo for NoDevices {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn end_of_interrupt(&self, _vector: u8) {}
    fn pic_acknowledge(&self) -> u8 {
        0xff
    }
}

const RAM_SIZE: u64 = 8 << 20;
/// Physical address of the first page table; more follow.
const TABLES: u64 = 0x1000;
/// Physical address of the first page.
const FRAMES: u64 = 4 << 20;

impl Machine {
    /// Creates a machine whose processor has the given CPUID, with `pages` as its memory (in real mode:
    /// the first megabytes, whatever `pages` says).
    ///
    /// # Panics
    /// When the host refuses memory or a thread, or there are too many pages.
    pub fn new(mode: Mode, cpuid: Vec<Leaf>, pages: &[Page]) -> Machine {
        Machine::with_options(mode, cpuid, pages, &Options::default())
    }

    /// Creates a machine whose engine has `options`.
    ///
    /// # Panics
    /// As for [`Machine::new`].
    pub fn with_options(mode: Mode, cpuid: Vec<Leaf>, pages: &[Page], options: &Options) -> Machine {
        let ram = Arc::new(Ram::new(RAM_SIZE).expect("8 MiB of guest memory"));
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).expect("a timer thread");
        let vm = engine::share(VmConfig { ram, clock, timers, vcpus: 1, cpuid }, options);
        let cpu = Cpu::new(vm.clone(), 0, vm.lapics[0].clone(), vm.signals[0].clone());
        let mut machine = Machine { cpu, mode, pages: Vec::new(), natively: false };
        machine.map(pages);
        machine.enter_mode();
        machine
    }

    /// Puts the processor back into the state it was created in. Memory stays.
    pub fn reset(&mut self) {
        self.cpu.reset();
        self.cpu.blocks.clear();
        self.cpu.stubs.clear();
        self.enter_mode();
    }

    /// Has every instruction that can execute natively do so, even if it has a handler of its own.
    pub fn prefer_native(&mut self, natively: bool) {
        self.natively = natively;
    }

    fn map(&mut self, pages: &[Page]) {
        let ram = self.cpu.ram.clone();
        let mut next_table = TABLES + PAGE_SIZE;
        for (page, gpa) in pages.iter().zip((FRAMES..RAM_SIZE).step_by(PAGE_SIZE as usize)) {
            let mut table = TABLES;
            for level in [3, 2, 1] {
                let slot = table + (page.linear >> (12 + 9 * level) & 0x1ff) * 8;
                let mut entry: u64 = ram.load(slot).expect("a table in RAM");
                if entry & PRESENT == 0 {
                    assert!(next_table < FRAMES, "too many page tables");
                    entry = next_table | PRESENT | WRITABLE | USER;
                    ram.store(slot, entry).expect("a table in RAM");
                    next_table += PAGE_SIZE;
                }
                table = entry & !0xfff;
            }
            let writable = if page.writable { WRITABLE | DIRTY } else { 0 };
            let entry = gpa | PRESENT | USER | ACCESSED | writable;
            debug_assert!(entry & NO_EXECUTE == 0);
            ram.store(table + (page.linear >> 12 & 0x1ff) * 8, entry).expect("a table in RAM");
            self.pages.push((page.linear, gpa));
        }
        assert_eq!(self.pages.len(), pages.len(), "too many pages");
    }

    /// Has the page at `linear` lead to where the page at `other` does.
    #[cfg(test)]
    pub(crate) fn alias(&mut self, linear: u64, other: u64) {
        let gpa = self.physical(other);
        let ram = self.cpu.ram.clone();
        let load = |at| -> u64 { ram.load(at).expect("a table in RAM") };
        let slot = |table: u64, level: u32| (table & !0xfff) + (linear >> (12 + 9 * level) & 0x1ff) * 8;
        let table = [3, 2, 1].into_iter().fold(TABLES, |table, level| load(slot(table, level)));
        let slot = slot(table, 0);
        ram.store(slot, load(slot) & 0xfff | gpa).expect("a table in RAM");
        self.pages.iter_mut().find(|(page, _)| *page == linear).expect("a page").1 = gpa;
        self.cpu.flush_tlb_all();
    }

    fn enter_mode(&mut self) {
        let cpu = &mut self.cpu;
        cpu.wait_for_sipi = false;
        cpu.sys.cr0 = cr0::ET | cr0::NE | cr0::MP;
        cpu.sys.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
        cpu.sys.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
        cpu.regs.rflags = rflags::FIXED | rflags::IF;
        let data = access::PRESENT | access::NOT_SYSTEM | access::WRITABLE | access::ACCESSED;
        if self.mode == Mode::Real16 {
            cpu.regs.seg[..6].fill(Segment::real_mode(0));
        } else {
            cpu.sys.cr0 |= cr0::PE | cr0::PG | cr0::WP | cr0::AM;
            cpu.sys.cr4 |= cr4::PAE;
            cpu.sys.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
            cpu.sys.cr3 = TABLES;
            let (selector, size) = match self.mode {
                Mode::Long64 => (0x33, access::LONG),
                Mode::Compat32 => (0x23, access::DEFAULT_BIG),
                _ => (0x23, 0),
            };
            let user = 3 << 5;
            let big = if self.mode == Mode::Compat16 { 0 } else { access::DEFAULT_BIG };
            let segment = |selector, access| Segment {
                base: 0,
                limit: 0xffff_ffff,
                selector,
                access: access | user | access::GRANULARITY,
            };
            cpu.regs.seg[..6].fill(segment(0x2b, data | big));
            let code =
                access::PRESENT | access::NOT_SYSTEM | access::CODE | access::READABLE | access::ACCESSED;
            cpu.regs.seg[seg::CS] = segment(selector, code | size);
        }
        cpu.flush_tlb_all();
        cpu.update_mode();
    }

    /// Replaces control registers, to try what depends on them.
    pub fn set_control(&mut self, cr0: u64, cr4: u64, xcr0: u64) {
        self.cpu.sys.cr0 = cr0;
        self.cpu.sys.cr4 = cr4;
        self.cpu.sys.xcr0 = xcr0;
        self.cpu.flush_tlb_all();
        self.cpu.update_mode();
    }

    /// Executes what follows with the rights of a supervisor; [`Machine::reset`] takes them back.
    #[cfg(test)]
    pub(crate) fn become_supervisor(&mut self) {
        for segment in &mut self.cpu.regs.seg[..6] {
            segment.access &= !(3 << 5);
            segment.selector &= !3;
        }
        self.cpu.update_mode();
    }

    /// Replaces the base of GS. Only in 64-bit mode; [`Machine::reset`] makes it zero.
    pub fn set_gs_base(&mut self, base: u64) {
        self.cpu.regs.seg[seg::GS].base = base;
    }

    /// CR0, CR4 and XCR0.
    pub fn control(&self) -> (u64, u64, u64) {
        (self.cpu.sys.cr0, self.cpu.sys.cr4, self.cpu.sys.xcr0)
    }

    fn physical(&self, linear: u64) -> u64 {
        if self.mode == Mode::Real16 {
            return linear;
        }
        let page = self.pages.iter().find(|(page, _)| *page == linear & !0xfff);
        page.expect("an address in a page").1 + linear % PAGE_SIZE
    }

    /// Writes memory, whoever may write it. Within one page.
    ///
    /// # Panics
    /// When there is no page.
    pub fn write(&mut self, linear: u64, bytes: &[u8]) {
        let gpa = self.physical(linear);
        self.cpu.ram.guest().write_slice(bytes, GuestAddress(gpa)).expect("memory at the page");
    }

    /// One of the engine's counters.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        let vm = &self.cpu.vm;
        let mut counters = vm.counters.list();
        counters.extend(crate::counters::VcpuCounts::sums(vm.counts.iter().map(|counts| &**counts)));
        counters.into_iter().find(|(each, _)| each == name).expect("a counter of that name").1
    }

    /// The host code of the trace at a linear address, where it is, and the routines it calls.
    #[cfg(test)]
    pub(crate) fn host_code(&mut self, linear: u64) -> (u64, Vec<u8>, crate::jit::stubs::Stubs) {
        self.translate_at(linear);
        let (gpa, key) = (self.physical(linear), crate::jit::key_of(&self.cpu));
        let cache = self.cpu.vm.code.cache();
        let (at, code) = cache.code_of(gpa, key).expect("just translated");
        (at, code, cache.stubs)
    }

    /// Translates the trace at a linear address. Nothing executes.
    #[cfg(test)]
    pub(crate) fn translate_at(&mut self, linear: u64) {
        let gpa = self.physical(linear);
        let key = crate::jit::key_of(&self.cpu);
        let made = self.cpu.translate_trace(gpa, None, key);
        assert!(matches!(made, crate::jit::translator::Made::Code(_)), "code that can be translated");
    }

    /// Writes one byte so that nobody notices.
    #[cfg(test)]
    pub(crate) fn poke_unreported(&mut self, linear: u64, byte: u8) {
        let gpa = self.physical(linear);
        let page = self.cpu.ram.host_page(gpa).expect("a page of RAM");
        // SAFETY: inside the page.
        unsafe { page.ptr.add((gpa & 0xfff) as usize).write(byte) };
    }

    /// Reads memory within one page.
    ///
    /// # Panics
    /// When there is no page.
    pub fn read(&self, linear: u64, bytes: &mut [u8]) {
        let gpa = self.physical(linear);
        self.cpu.ram.guest().read_slice(bytes, GuestAddress(gpa)).expect("memory at the page");
    }

    /// The registers.
    pub fn state(&self) -> UserState {
        let regs = &self.cpu.regs;
        UserState {
            gpr: regs.r[..16].try_into().expect("16 registers"),
            rip: regs.r[RIP],
            rflags: regs.rflags,
            mxcsr: regs.mxcsr,
            ymm: regs.ymm,
            x87: regs.fx[..160].try_into().expect("160 bytes"),
        }
    }

    /// Replaces the registers.
    pub fn set_state(&mut self, state: &UserState) {
        let regs = &mut self.cpu.regs;
        regs.r[..16].copy_from_slice(&state.gpr);
        regs.r[RIP] = state.rip;
        regs.rflags = state.rflags;
        regs.mxcsr = state.mxcsr;
        regs.ymm = state.ymm;
        regs.fx[..160].copy_from_slice(&state.x87);
        let cpu = &mut self.cpu;
        // Where translated code left is not what leads here.
        cpu.jit.exit = crate::jit::state::NO_EXIT;
        (cpu.shadow, cpu.halted, cpu.pending_exception, cpu.exit) = (false, false, None, None);
        cpu.update_mode();
    }

    /// Executes with every block translated at once, until the instruction pointer is `end`.
    pub fn run_translated(&mut self, end: u64) -> Outcome {
        crate::jit::runtime::use_vcpu(&raw mut *self.cpu).expect("the GS base of this thread");
        self.cpu.jit.always_leave = true;
        let result = self.cpu.with_io(&NoDevices, |cpu| {
            while cpu.regs.r[RIP] != end && cpu.exit.is_none() {
                cpu.heed_requests();
                cpu.signals.take(u32::MAX);
                let linear = cpu.regs.r[RIP];
                if let Ok(block) = cpu.find_block(linear)
                    && (block.hits.get() < cpu.vm.options.hot || block.hits.get() == TRANSLATED)
                {
                    block.hits.set(cpu.vm.options.hot);
                }
                if !cpu.may_translate() || !cpu.run_translated()? {
                    execute(cpu, false)?;
                }
            }
            Ok(())
        });
        self.outcome(result)
    }

    /// Executes until the instruction pointer is `end` with every trace translated and interpreted on
    /// the same state, or `pieces_max` traces and instructions have executed. The machine's options say [`Jit::Lockstep`](crate::Jit::Lockstep).
    ///
    /// # Errors
    /// The report of a difference.
    pub fn run_lockstep(&mut self, end: u64, pieces_max: usize) -> std::result::Result<Outcome, String> {
        crate::jit::runtime::use_vcpu(&raw mut *self.cpu).expect("the GS base of this thread");
        let vm = self.cpu.vm.clone();
        let Some(_turn) = vm.turns.take(&mut self.cpu) else { return Ok(Outcome::Left("kicked".into())) };
        let result = self.cpu.with_io(&NoDevices, |cpu| {
            for _ in 0..pieces_max {
                if cpu.regs.r[RIP] == end || cpu.exit.is_some() {
                    break;
                }
                cpu.heed_requests();
                cpu.signals.take(u32::MAX);
                let linear = cpu.regs.r[RIP];
                if let Ok(block) = cpu.find_block(linear)
                    && (block.hits.get() < cpu.vm.options.hot || block.hits.get() == TRANSLATED)
                {
                    block.hits.set(cpu.vm.options.hot);
                }
                if !cpu.may_translate() || !cpu.compare_trace()? {
                    execute(cpu, false)?;
                }
            }
            Ok(())
        });
        if let Some(report) = self.cpu.failure.take() {
            self.cpu.exit = None;
            return Err(report);
        }
        Ok(self.outcome(result))
    }

    /// Executes one instruction (of one that repeats, perhaps one iteration). An exception leaves the
    /// instruction pointer where it was and is reported, not delivered.
    pub fn step(&mut self) -> Outcome {
        let natively = self.natively;
        let result = self.cpu.with_io(&NoDevices, |cpu| execute(cpu, natively));
        self.outcome(result)
    }

    fn outcome(&mut self, result: Result<()>) -> Outcome {
        let cpu = &mut self.cpu;
        cpu.shadow = false;
        match result {
            _ if cpu.exit.is_some() => Outcome::Left(format!("{:?}", cpu.exit.take())),
            Ok(()) => Outcome::Completed,
            Err(fault) if fault.is_leave() => Outcome::Left("without a reason".into()),
            Err(fault) => {
                Outcome::Exception { vector: fault.vector(), code: fault.code(), address: cpu.fault_address }
            }
        }
    }
}

fn execute(cpu: &mut Cpu, natively: bool) -> Result<()> {
    let start = cpu.regs.r[RIP];
    let linear = match cpu.mode.is_64() {
        true => start,
        false => cpu.regs.seg[seg::CS].base.wrapping_add(start) & 0xffff_ffff,
    };
    let block = cpu.find_block(linear)?;
    let op = &block.ops()[0];
    let native = if natively { native_twin(cpu, linear, op) } else { None };
    let op = native.as_ref().unwrap_or(op);
    cpu.regs.r[RIP] = start.wrapping_add(op.len as u64);
    let result = (op.run)(cpu, op);
    cpu.code_modified = false;
    match result {
        Ok(Flow::Next | Flow::Branch) => {
            if !cpu.mode.is_64() {
                cpu.regs.r[RIP] &= 0xffff_ffff;
            }
            Ok(())
        }
        Err(fault) => {
            if !fault.is_leave() {
                cpu.regs.r[RIP] = start;
            }
            Err(fault)
        }
    }
}

/// The same instruction with a native handler, if there can be one.
fn native_twin(cpu: &mut Cpu, linear: u64, op: &Op) -> Option<Op> {
    let mut bytes = [0u8; 15];
    let bytes = &mut bytes[..op.len as usize];
    for (at, byte) in (linear..).zip(bytes.iter_mut()) {
        *byte = cpu.read::<u8>(at).ok()?;
    }
    let bits = cpu.mode.code_bits as u32;
    let insn = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode();
    let mut twin = Op {
        run: |_, _| Err(Fault::UNDEFINED),
        detail: Some(Rc::new(Detail { insn, stub: None })),
        ends_block: false,
        ..*op
    };
    (!insn.is_invalid() && native::select(cpu, &insn, &mut twin)).then_some(twin)
}
