//! One virtual processor's state and what is derived from it.

use crate::block::cache::BlockCache;
use crate::counters::VcpuCounts;
use crate::fault::Fault;
use crate::jit::runtime;
use crate::jit::state::JitState;
use crate::jit::way::Kinds;
use crate::lapic::Lapic;
use crate::lockstep::Guard;
use crate::mmu::pages::Pages;
use crate::mmu::spaces::Spaces;
use crate::mmu::tlb::{MmuIndex, Tlb};
use crate::native::Stubs;
use crate::options::Jit;
use crate::regs::{Regs, *};
use crate::signals::Signals;
use crate::thrift::Thrift;
use crate::vm::VmShared;
use clock::Spin;
use cpu::{CpuIo, VmExit};
use memory::Ram;
use std::sync::Arc;
use x86::Segment;
use x86::reg::{cr0, cr4, dr6, dr7, efer, rflags};
use x86::segment::access;
use x86::state::{TableRegister, seg};

/// A virtual processor. Boxed: generated code and raw pointers rely on its address.
#[repr(C)]
pub(crate) struct Cpu {
    pub(crate) regs: Regs,
    pub(crate) tlb: Tlb,
    pub(crate) pages: Pages,
    pub(crate) spaces: Spaces,
    pub(crate) jit: JitState,
    pub(crate) sys: SystemRegs,
    pub(crate) mode: Mode,
    /// Linear address of the page fault being raised; becomes CR2 at delivery.
    pub(crate) fault_address: u64,
    /// A store of this vCPU hit code that is cached: leave the block after the instruction.
    pub(crate) code_modified: bool,
    /// STI, MOV SS or POP SS has just executed: no interrupt before the next instruction completes.
    pub(crate) shadow: bool,
    /// NMIs are blocked until IRET.
    pub(crate) nmi_blocked: bool,
    /// HLT has executed; the vCPU waits for an interrupt.
    pub(crate) halted: bool,
    /// Waits for a start-up message.
    pub(crate) wait_for_sipi: bool,
    /// An event whose delivery was interrupted by an exit or comes from a restored state.
    pub(crate) pending_exception: Option<(Fault, u64)>,
    /// An interrupt of the legacy controller that another engine had acknowledged there.
    pub(crate) pending_interrupt: Option<u8>,
    /// Why to leave guest execution; set with [`Fault::LEAVE`] or checked between blocks.
    pub(crate) exit: Option<VmExit>,
    pub(crate) id: u32,
    pub(crate) ram: Arc<Ram>,
    pub(crate) vm: Arc<VmShared>,
    pub(crate) lapic: Arc<Lapic>,
    pub(crate) signals: Arc<Signals>,
    /// How long it waits awake when it has halted.
    pub(crate) spin: Spin,
    pub(crate) blocks: BlockCache,
    pub(crate) stubs: Stubs,
    /// How instructions are translated.
    pub(crate) kinds: Kinds,
    pub(crate) counts: Arc<VcpuCounts>,
    pub(crate) thrift: Thrift,
    /// What lock-step execution watches.
    pub(crate) guard: Guard,
    /// Why this vCPU cannot go on, if the engine is to blame.
    pub(crate) failure: Option<String>,
    /// Where accesses to devices go; valid while `run` is on the stack.
    io: Option<*const (dyn CpuIo + 'static)>,
}

// SAFETY: the raw pointers in it (blocks, generated code, `io` between runs) are owned by it or unset.
unsafe impl Send for Cpu {}

/// Registers that only system software touches.
#[derive(Clone, Debug)]
pub(crate) struct SystemRegs {
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) gdtr: TableRegister,
    pub(crate) idtr: TableRegister,
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    /// The four page-directory pointers that PAE paging loads with CR3 (SDM vol. 3A, §4.4.1).
    pub(crate) pdpte: [u64; 4],
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) kernel_gs_base: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) pat: u64,
    /// What the guest added to its TSC by writing IA32_TSC or IA32_TSC_ADJUST.
    pub(crate) tsc_adjust: u64,
    /// Model-specific registers that only remember what was written, by number.
    pub(crate) other_msrs: std::collections::BTreeMap<u32, u64>,
}

/// How linear addresses become physical ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    /// They are the same.
    None,
    /// Two levels of 32-bit entries.
    Bits32,
    /// Three levels of 64-bit entries.
    Pae,
    /// Four levels of 64-bit entries.
    Long,
}

/// What follows from the control registers and the code and stack segments; kept by
/// [`Cpu::update_mode`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    /// Current privilege level.
    pub(crate) cpl: u8,
    /// CR0.PE.
    pub(crate) protected: bool,
    /// RFLAGS.VM in protected mode.
    pub(crate) v86: bool,
    /// EFER.LMA: 64-bit or compatibility mode.
    pub(crate) long: bool,
    /// Default size of code: 16, 32 or 64 bits.
    pub(crate) code_bits: u8,
    /// Size of the stack pointer: 16, 32 or 64 bits.
    pub(crate) stack_bits: u8,
    pub(crate) paging: Paging,
    /// Which data TLB arrays explicit accesses use.
    pub(crate) data: MmuIndex,
    /// What distinguishes cached blocks of the same bytes.
    pub(crate) key: BlockKey,
}

/// What, besides its bytes, a cached block depends on: the code size and the privilege its fetch was
/// checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct BlockKey(pub(crate) u8);

impl BlockKey {
    pub(crate) fn new(code_bits: u8, user: bool) -> BlockKey {
        BlockKey((code_bits / 16) | ((user as u8) << 7))
    }
}

impl Mode {
    /// Whether the processor is in 64-bit mode proper.
    #[inline(always)]
    pub(crate) fn is_64(&self) -> bool {
        self.code_bits == 64
    }

    /// Real-address or virtual-8086 mode: segments are paragraph numbers.
    #[inline(always)]
    pub(crate) fn is_real_like(&self) -> bool {
        !self.protected || self.v86
    }

    #[inline(always)]
    pub(crate) fn is_user(&self) -> bool {
        self.cpl == 3
    }
}

impl SystemRegs {
    /// As after power-up or INIT (SDM vol. 3A, table 9-1).
    pub(crate) fn new() -> SystemRegs {
        SystemRegs {
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: x86::reg::xcr0::X87,
            dr: [0; 4],
            dr6: dr6::FIXED,
            dr7: dr7::FIXED,
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            ldtr: Segment { limit: 0xffff, access: access::PRESENT | 2, ..Segment::default() },
            tr: Segment { limit: 0xffff, access: access::PRESENT | 11, ..Segment::default() },
            pdpte: [0; 4],
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            tsc_adjust: 0,
            other_msrs: Default::default(),
        }
    }
}

impl Cpu {
    /// Creates a vCPU in its state after reset.
    pub(crate) fn new(vm: Arc<VmShared>, id: u32, lapic: Arc<Lapic>, signals: Arc<Signals>) -> Box<Cpu> {
        let mut boxed = memory::zeroed_box::<Cpu>();
        let at: *mut Cpu = boxed.as_mut_ptr();
        /// Initialises fields in place: the tables of translated code are too large for a stack.
        macro_rules! init {
            ($($field:ident: $value:expr),* $(,)?) => {
                // SAFETY: `at` is a fresh allocation of the right layout; each field is written once.
                unsafe { $((&raw mut (*at).$field).write($value);)* }
            };
        }
        let mode = Mode {
            cpl: 0,
            protected: false,
            v86: false,
            long: false,
            code_bits: 16,
            stack_bits: 16,
            paging: Paging::None,
            data: MmuIndex::Kernel,
            key: BlockKey::default(),
        };
        init! {
            regs: Regs::new(),
            pages: Pages::new(),
            spaces: Spaces::default(),
            sys: SystemRegs::new(),
            mode: mode,
            fault_address: 0,
            code_modified: false,
            shadow: false,
            nmi_blocked: false,
            halted: false,
            wait_for_sipi: id != 0,
            pending_exception: None,
            pending_interrupt: None,
            exit: None,
            id: id,
            ram: vm.ram.clone(),
            counts: vm.counts[id as usize].clone(),
            guard: Guard::default(),
            failure: None,
            vm: vm,
            lapic: lapic,
            blocks: BlockCache::new(),
            stubs: Stubs::new(),
            kinds: Kinds::default(),
            thrift: Thrift::default(),
            spin: Spin::default(),
            io: None,
        }
        // SAFETY: as above; all that is left of `jit` are integers and raw pointers, for which zero is a
        // value, and what `initialise` writes.
        let mut cpu = unsafe {
            runtime::initialise(&raw mut (*at).jit, Arc::as_ptr(&signals), at);
            (*at).tlb.initialise();
            (&raw mut (*at).signals).write(signals);
            boxed.assume_init()
        };
        // There traces are compared one by one.
        cpu.jit.always_leave = cpu.vm.options.jit == Jit::Lockstep;
        cpu.reset();
        cpu
    }

    /// INIT or power-up: everything to its value after reset, except what INIT leaves alone (SDM vol.
    /// 3A, table 9-1): the x87, SSE and AVX state and most MSRs.
    pub(crate) fn reset(&mut self) {
        let keep = SystemRegs { other_msrs: std::mem::take(&mut self.sys.other_msrs), ..SystemRegs::new() };
        let (tsc_adjust, pat) = (self.sys.tsc_adjust, self.sys.pat);
        self.sys = SystemRegs { tsc_adjust, pat, ..keep };
        self.regs.r = [0; 18];
        self.regs.r[RDX] = 0x600;
        self.regs.r[RIP] = 0xfff0;
        self.regs.rflags = rflags::FIXED;
        for index in 0..6 {
            self.regs.seg[index] = Segment::real_mode(0);
        }
        let code = access::PRESENT | access::NOT_SYSTEM | access::CODE | access::READABLE | access::ACCESSED;
        self.regs.seg[seg::CS] = Segment { base: 0xffff_0000, limit: 0xffff, selector: 0xf000, access: code };
        self.shadow = false;
        self.nmi_blocked = false;
        self.halted = false;
        self.pending_exception = None;
        self.pending_interrupt = None;
        self.flush_tlb_all();
        self.update_mode();
        self.update_fast();
    }

    /// Recomputes [`Mode`]. Call after any change of CR0, CR4, EFER, CS, SS, or RFLAGS.VM and AC.
    pub(crate) fn update_mode(&mut self) {
        let sys = &self.sys;
        let protected = sys.cr0 & cr0::PE != 0;
        let v86 = protected && self.regs.flag(rflags::VM);
        let long = sys.efer & efer::LMA != 0;
        let (cs, ss) = (&self.regs.seg[seg::CS], &self.regs.seg[seg::SS]);
        let cpl = match (protected, v86) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => ss.dpl(),
        };
        let code_bits = match () {
            _ if !protected || v86 => 16 + 16 * (cs.has(access::DEFAULT_BIG) && !v86) as u8,
            _ if long && cs.has(access::LONG) => 64,
            _ => 16 + 16 * cs.has(access::DEFAULT_BIG) as u8,
        };
        let stack_bits = match code_bits {
            64 => 64,
            _ => 16 + 16 * (ss.has(access::DEFAULT_BIG) && !v86) as u8,
        };
        let paging = match () {
            _ if sys.cr0 & cr0::PG == 0 => Paging::None,
            _ if long => Paging::Long,
            _ if sys.cr4 & cr4::PAE != 0 => Paging::Pae,
            _ => Paging::Bits32,
        };
        let smap = sys.cr4 & cr4::SMAP != 0 && !self.regs.flag(rflags::AC);
        let data = match () {
            _ if cpl == 3 => self.user_mmu(),
            _ if smap => MmuIndex::Kernel,
            _ => MmuIndex::KernelAc,
        };
        let key = BlockKey::new(code_bits, cpl == 3);
        self.mode = Mode { cpl, protected, v86, long, code_bits, stack_bits, paging, data, key };
    }

    /// The device side of the machine. Only while running.
    pub(crate) fn io(&self) -> &dyn CpuIo {
        let io = self.io.expect("a vCPU accesses devices only while it runs");
        // SAFETY: set by `with_io` for as long as the borrow that it came from.
        unsafe { &*io }
    }

    /// Runs `f` with device accesses going to `io`.
    pub(crate) fn with_io<R>(&mut self, io: &dyn CpuIo, f: impl FnOnce(&mut Cpu) -> R) -> R {
        // SAFETY: only the lifetime is changed; the pointer is removed before `io` ends.
        let io: &'static dyn CpuIo = unsafe { std::mem::transmute(io) };
        self.io = Some(io);
        let result = f(self);
        self.io = None;
        result
    }

    /// The guest's time-stamp counter.
    #[inline]
    pub(crate) fn tsc(&self) -> u64 {
        self.vm.clock.tsc().wrapping_add(self.sys.tsc_adjust)
    }
}
