//! The common routines for REP MOVS and REP STOS that stay in one page: by the host's own, at host
//! addresses. Anything else goes to the instruction's handler.

use super::emit::{Emit, Label, cc, host};
use super::mapping::{S0, S1};
use super::stubs::jit;
use crate::cpu::Cpu;
use crate::mmu::tlb::{ENTRIES, Entry, Tlb};
use iced_x86::{CodeSize, Instruction, Mnemonic as M, OpKind, Register};
use std::mem::offset_of;
use x86::reg::rflags;

/// One routine for each kind of data access, instruction and size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Routines([[u64; 8]; 3]);

/// Which routine an instruction has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u8);

/// An instruction that moves, stores or loads one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Single {
    Move,
    Store,
    Load,
}

impl Single {
    /// What an instruction without a prefix for repetition does, if its addresses are as wide as its code has them
    /// and its segments are usual ones. Compares and scans are left to their handlers.
    pub(super) fn of(insn: &Instruction) -> Option<Single> {
        use OpKind::{MemoryESEDI, MemoryESRDI, MemorySegESI, MemorySegRSI};
        let wide = insn.code_size() == CodeSize::Code64;
        let source = |kind: OpKind| kind == if wide { MemorySegRSI } else { MemorySegESI };
        let target = |kind: OpKind| kind == if wide { MemoryESRDI } else { MemoryESEDI };
        let other_segment = || {
            let segment = insn.memory_segment();
            matches!(segment, Register::FS | Register::GS) || segment == Register::CS && !wide
        };
        if insn.has_rep_prefix() || insn.has_repne_prefix() || !insn.is_string_instruction() {
            return None;
        }
        match insn.mnemonic() {
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => {
                (target(insn.op0_kind()) && source(insn.op1_kind()) && !other_segment())
                    .then_some(Single::Move)
            }
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => target(insn.op0_kind()).then_some(Single::Store),
            M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => {
                (source(insn.op1_kind()) && !other_segment()).then_some(Single::Load)
            }
            _ => None,
        }
    }
}

impl Kind {
    /// The kind of an instruction; `None` for those that always go to their handler.
    pub(crate) fn of(insn: &Instruction) -> Option<Kind> {
        let store = match insn.mnemonic() {
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => false,
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => true,
            _ => return None,
        };
        let source = store
            || insn.op1_kind() == OpKind::MemorySegRSI
                && !matches!(insn.memory_segment(), Register::FS | Register::GS);
        let repeated = insn.has_rep_prefix() && !insn.has_repne_prefix();
        let usual = repeated && source && insn.op0_kind() == OpKind::MemoryESRDI;
        let size = insn.memory_size().size().trailing_zeros() as u8;
        usual.then_some(Kind((store as u8) << 2 | size))
    }

    fn stores(self) -> bool {
        self.0 & 4 != 0
    }

    /// Logarithm of the element's size in bytes.
    fn size(self) -> u8 {
        self.0 & 3
    }
}

impl Routines {
    /// Generates them; `callout` executes the noted site's instruction by its handler.
    pub(super) fn generate(e: &mut Emit, callout: u64) -> Routines {
        let mut routines = Routines::default();
        for (mmu, routines) in routines.0.iter_mut().enumerate() {
            for (kind, routine) in routines.iter_mut().enumerate() {
                e.align(16, 0);
                *routine = e.here();
                emit(e, Kind(kind as u8), mmu, callout);
            }
        }
        routines
    }

    /// The routine of an instruction for an access of privilege `mmu`: called with the site noted and
    /// RAX, RCX, RSI and RDI at home.
    pub(super) fn get(&self, kind: Kind, mmu: crate::mmu::tlb::MmuIndex) -> u64 {
        self.0[mmu as usize][kind.0 as usize]
    }
}

/// Uses S0 and S1, and the places where helpers would keep RSI and RDI.
fn emit(e: &mut Emit, kind: Kind, mmu: usize, callout: u64) {
    let (rax, rcx, rsi, rdi) = (host::RAX, host::RCX, host::RSI, host::RDI);
    let (kept_rsi, kept_rdi) = (jit!(host) + rsi as i32 * 8, jit!(host) + rdi as i32 * 8);
    let array = mmu * size_of::<[Entry; ENTRIES]>();
    let read = (offset_of!(Cpu, tlb) + offset_of!(Tlb, read) + array) as i32;
    let write = (offset_of!(Cpu, tlb) + offset_of!(Tlb, write) + array) as i32;
    let slow = e.label();

    e.gs_store(jit!(saved_rax), rax);
    e.flags_to_ax();
    e.gs_store(jit!(saved_flags), rax);
    e.gs_test8_imm(jit!(system_flags) + 1, (rflags::DF >> 8) as u8);
    e.jcc(cc::NE, slow);
    e.cmp_imm(rcx, 4096 >> kind.size());
    e.jcc(cc::A, slow);
    // S1: length in bytes.
    e.lea(true, S1, None, Some((rcx, kind.size())), 0);
    if !kind.stores() {
        host_address(e, rsi, read, slow);
        e.gs_store(kept_rsi, rsi);
        e.gs_store(jit!(target), rax);
    }
    host_address(e, rdi, write, slow);
    e.gs_store(kept_rdi, rdi);
    e.mov(rdi, rax);
    if kind.stores() {
        e.gs_load(rax, jit!(saved_rax));
    } else {
        e.gs_load(rsi, jit!(target));
    }
    // rep movs or rep stos
    e.byte(0xf3);
    match kind.size() {
        1 => e.byte(0x66),
        3 => e.byte(0x48),
        _ => {}
    }
    let opcode = if kind.stores() { 0xaa } else { 0xa4 };
    e.byte(opcode | (kind.size() != 0) as u8);
    e.gs_load(rdi, kept_rdi);
    e.lea(true, rdi, Some(rdi), Some((S1, 0)), 0);
    if !kind.stores() {
        e.gs_load(rsi, kept_rsi);
        e.lea(true, rsi, Some(rsi), Some((S1, 0)), 0);
    }
    e.gs_load(rax, jit!(saved_flags));
    e.flags_from_ax();
    e.gs_load(rax, jit!(saved_rax));
    e.byte(0xc3);

    e.bind(slow);
    e.gs_load(rax, jit!(saved_flags));
    e.flags_from_ax();
    e.gs_load(rax, jit!(saved_rax));
    e.jmp_to(callout);
}

/// Puts the host address of the S1 bytes at linear address `register` into RAX, if they lie in one page
/// that the array has. Uses S0.
fn host_address(e: &mut Emit, register: u8, array: i32, slow: Label) {
    e.mov(S0, register);
    e.shr(S0, 8);
    e.and32_imm(S0, (ENTRIES as u32 - 1) << 4);
    e.mov(host::RAX, register);
    e.gs_sub_indexed(host::RAX, S0, array);
    // The offset in the page; anything larger is another page.
    e.cmp_imm(host::RAX, 4095);
    e.jcc(cc::A, slow);
    e.lea(true, host::RAX, Some(host::RAX), Some((S1, 0)), 0);
    e.cmp_imm(host::RAX, 4096);
    e.jcc(cc::A, slow);
    e.sub(host::RAX, S1);
    e.gs_add_indexed(host::RAX, S0, array + 8);
}
