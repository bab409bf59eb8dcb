//! The common routines of translated code: in, out, and to the helpers.

use super::emit::{Emit, cc, host};
use super::mapping::{Loc, Mapping, S0, S1, slot};
use super::passage;
use super::runtime;
use super::state::{NO_EXIT, TARGETS};
use super::strings::Routines;
use crate::cpu::Cpu;
use crate::mmu::guess::{EMPTY, Guess, GuessBank};
use crate::mmu::tlb::{ENTRIES, Entry, MmuIndex, Tlb};
use crate::regs::Regs;
use std::mem::offset_of;

/// Where a field of the [`JitState`] is, from the start of the vCPU.
macro_rules! jit {
    ($field:ident) => {
        (std::mem::offset_of!($crate::cpu::Cpu, jit)
            + std::mem::offset_of!($crate::jit::state::JitState, $field)) as i32
    };
}
pub(crate) use jit;

/// Addresses of the common routines.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stubs {
    /// `extern "sysv64" fn(code, linear)`: loads the guest's registers and goes to `code` with the
    /// linear address in S0; returns when the guest leaves.
    pub(crate) enter: u64,
    /// Leaves with the next instruction's address in S0 and nothing to link.
    pub(crate) leave: u64,
    /// Leaves with the next instruction's address in S0 and the exit noted.
    pub(crate) leave_to_link: u64,
    /// The slow way of a memory access: linear address in S0, site noted. Returns the host address in
    /// S0, or five bytes further when the instruction is done already.
    pub(crate) slow: u64,
    /// Executes the instruction of the noted site by its handler.
    pub(crate) callout: u64,
    /// Executes the instruction of the noted site by its handler and goes on wherever that says.
    pub(crate) hand: u64,
    /// SYSCALL of 64-bit user code: the next instruction's address in S0, the site noted.
    pub(crate) syscall: u64,
    /// SYSRET to 64-bit code: the site noted.
    pub(crate) sysret: u64,
    /// REP MOVS and REP STOS.
    pub(crate) strings: Routines,
    /// Loads the guest's vector registers. Keeps everything else but flags.
    pub(crate) load_simd: u64,
    /// By privilege and direction: look in the soft TLB for the page of the range at S0, and note it as the
    /// guess told. Keep everything but flags and S1. Return five bytes further when it is not there.
    pub(crate) guess: [u64; 6],
    /// Tells that a guess was made as often as it is counted. Keeps everything.
    pub(crate) guessed_enough: u64,
    /// By privilege: where a return goes when nothing is on the return stack.
    pub(crate) underflow: [u64; 3],
}

const HOST_SAVED: [u8; 6] = [host::RBX, host::RBP, host::R12, host::R13, host::R14, host::R15];

/// Generates the routines at the emitter's place.
pub(crate) fn generate(e: &mut Emit, avx: bool) -> Stubs {
    let mut stubs = Stubs::default();

    e.align(16, 0);
    stubs.load_simd = e.here();
    simd(e, avx, true);
    e.byte(0xc3);

    e.align(16, 0);
    let store_simd = e.here();
    simd(e, avx, false);
    e.byte(0xc3);

    // enter(rdi = code, rsi = linear)
    e.align(16, 0);
    stubs.enter = e.here();
    for register in HOST_SAVED {
        push(e, register);
    }
    // Six registers and the return address: eight more bytes align the stack for calls.
    e.bytes(&[0x48, 0x83, 0xec, 0x08]); // sub rsp, 8
    e.gs_store(jit!(host_rsp), host::RSP);
    e.gs_store(jit!(target), host::RDI);
    e.mov(S0, host::RSI);
    load_guest(e);

    e.align(16, 0);
    stubs.leave = e.here();
    e.gs_store_imm32(jit!(exit), NO_EXIT);
    stubs.leave_to_link = e.here();
    for guest in 0..16 {
        if let Loc::Host(number) = Mapping::CANONICAL.loc(guest) {
            e.gs_store(slot(guest), number);
        }
    }
    e.gs_store(slot(crate::regs::RIP as u8), S0);
    store_flags(e);
    if_simd_loaded(e, store_simd);
    // Everything is in the vCPU: go on without leaving this frame, if there is translated code.
    let settled = e.here();
    e.gs_load(host::RSP, jit!(host_rsp));
    e.gs_load(host::RDI, jit!(cpu));
    e.mov_imm(host::RAX, runtime::resume as *const () as u64);
    e.bytes(&[0xff, 0xd0]); // call rax
    e.bytes(&[0x48, 0x85, 0xc0]); // test rax, rax
    let out = e.label();
    e.jcc(cc::E, out);
    e.gs_store(jit!(target), host::RAX);
    e.gs_load(S0, slot(crate::regs::RIP as u8));
    load_guest(e);
    e.bind(out);
    e.bytes(&[0x48, 0x83, 0xc4, 0x08]); // add rsp, 8
    for register in HOST_SAVED.into_iter().rev() {
        pop(e, register);
    }
    e.byte(0xc3);

    e.align(16, 0);
    stubs.slow = e.here();
    save_host(e);
    e.mov(host::RSI, S0);
    call_helper(e, runtime::slow_access as *const () as u64, store_simd);
    test_leave(e, settled);
    // 1: the instruction is done; anything else: the host address.
    e.bytes(&[0x48, 0x83, 0xf8, 0x01]); // cmp rax, 1
    let done = e.label();
    e.jcc(cc::E, done);
    e.gs_store(jit!(host) + S0 as i32 * 8, host::RAX);
    reload(e, stubs.load_simd);
    e.byte(0xc3);
    e.bind(done);
    reload(e, stubs.load_simd);
    // Return five bytes further: the caller's jump back to the access is skipped.
    e.bytes(&[0x4c, 0x8b, 0x34, 0x24]); // mov r14, [rsp]
    e.bytes(&[0x4d, 0x8d, 0x76, 0x05]); // lea r14, [r14 + 5]
    e.bytes(&[0x4c, 0x89, 0x34, 0x24]); // mov [rsp], r14
    e.byte(0xc3);

    e.align(16, 0);
    stubs.callout = e.here();
    save_host(e);
    call_helper(e, runtime::callout as *const () as u64, store_simd);
    test_leave(e, settled);
    reload(e, stubs.load_simd);
    e.byte(0xc3);

    e.align(16, 0);
    stubs.hand = e.here();
    save_host(e);
    if_simd_loaded(e, store_simd);
    e.gs_load(host::RDI, jit!(cpu));
    e.mov_imm(host::RAX, runtime::hand as *const () as u64);
    e.bytes(&[0xff, 0xd0]); // call rax
    test_leave(e, settled);
    // Where the code is looked for is in S1, for which linear address in S0.
    reload(e, stubs.load_simd);
    e.bytes(&[0x41, 0xff, 0x65, 0x00]); // jmp [r13]

    for mmu in [MmuIndex::Kernel, MmuIndex::User, MmuIndex::KernelAc] {
        e.align(16, 0);
        stubs.underflow[mmu as usize] = e.here();
        e.gs_push(jit!(underflow));
        e.movzx16(S1, S0);
        e.gs_jmp_scaled(S1, jit!(targets) + (mmu as usize * TARGETS * 8) as i32);
    }
    for mmu in [MmuIndex::Kernel, MmuIndex::User, MmuIndex::KernelAc] {
        for write in [false, true] {
            e.align(16, 0);
            stubs.guess[mmu as usize * 2 + write as usize] = e.here();
            guess(e, mmu, write, store_simd, stubs.load_simd);
        }
    }

    e.align(16, 0);
    stubs.guessed_enough = e.here();
    save_host(e);
    call_helper(e, runtime::guessed_enough as *const () as u64, store_simd);
    reload(e, stubs.load_simd);
    e.byte(0xc3);

    stubs.strings = Routines::generate(e, stubs.callout);
    stubs.syscall = passage::syscall(e, stubs.hand, store_simd);
    stubs.sysret = passage::sysret(e, stubs.hand);
    stubs
}

/// Where the soft TLB's array for an access is, from the start of the vCPU.
pub(crate) fn table(mmu: MmuIndex, write: bool) -> i32 {
    const { assert!(size_of::<Entry>() == 16 && offset_of!(Entry, page) == 0 && offset_of!(Entry, host) == 8) };
    let arrays = if write { offset_of!(Tlb, write) } else { offset_of!(Tlb, read) };
    (offset_of!(Cpu, tlb) + arrays + mmu as usize * size_of::<[Entry; ENTRIES]>()) as i32
}

/// Where the bank of guesses for an access is, from the start of the vCPU.
pub(crate) fn guesses(mmu: MmuIndex, write: bool) -> i32 {
    let bank = mmu as usize * 2 + write as usize;
    (offset_of!(Cpu, tlb) + offset_of!(Tlb, guesses) + bank * size_of::<GuessBank>()) as i32
}

/// Looks for the page of a guess that was wrong: see [`Stubs::guess`].
fn guess(e: &mut Emit, mmu: MmuIndex, write: bool, store_simd: u64, load_simd: u64) {
    const RAX: u8 = host::RAX;
    const RCX: u8 = 1;
    let (table, bank) = (table(mmu, write), guesses(mmu, write));
    const { assert!(size_of::<Guess>() == 16 && offset_of!(Guess, page) == 0 && offset_of!(Guess, addend) == 8) };
    let entries = bank + offset_of!(GuessBank, entries) as i32;
    let (absent, crossing, empty, done, note) = (e.label(), e.label(), e.label(), e.label(), e.label());
    let again = e.here();
    e.gs_store(jit!(host), RAX);
    e.gs_store(jit!(host) + 8, RCX);
    let restore = |e: &mut Emit| {
        e.gs_load(RAX, jit!(host));
        e.gs_load(RCX, jit!(host) + 8);
    };
    // All of the range has to be in the page.
    e.mov(RAX, S0);
    e.and_imm(RAX, -4096);
    e.gs_load32(RCX, jit!(guess));
    e.mov32(S1, RCX);
    e.shr(S1, 16);
    e.lea(true, S1, Some(S0), Some((S1, 0)), -1);
    e.xor(S1, RAX);
    e.cmp_imm(S1, 0xfff);
    e.jcc(cc::A, crossing);
    e.mov(S1, S0);
    e.shr(S1, 8);
    e.and32_imm(S1, (ENTRIES as u32 - 1) << 4);
    e.gs_cmp_indexed(RAX, S1, table);
    e.jcc(cc::NE, absent);
    e.gs_load_indexed(S1, S1, table + 8);
    e.sub(S1, RAX);
    e.movzx16(RCX, RCX);
    e.gs_store_indexed(RCX, entries + 8, S1);
    e.gs_load_indexed(S1, RCX, entries);
    e.gs_store_indexed(RCX, entries, RAX);
    // Pages have zeroes there.
    e.test8_imm(S1, EMPTY);
    e.jcc(cc::NE, empty);
    // It was another page's: is that so often?
    // The guess for the stack stays one.
    e.shr(RCX, 2);
    e.jcc(cc::E, done);
    e.gs_decrement_indexed(RCX, bank + offset_of!(GuessBank, misses) as i32);
    e.jcc(cc::AE, done);
    restore(e);
    save_host(e);
    call_helper(e, runtime::guessed_wrong as *const () as u64, store_simd);
    reload(e, load_simd);
    e.byte(0xc3);
    // It has to be found when all is forgotten.
    e.bind(empty);
    let count = bank + offset_of!(GuessBank, count) as i32;
    e.gs_load32(RAX, count);
    e.cmp_imm(RAX, GuessBank::FILLED as i32);
    e.jcc(cc::A, done);
    e.jcc(cc::E, note);
    e.gs_store32_scaled(RAX, bank + offset_of!(GuessBank, filled) as i32, RCX);
    e.bind(note);
    e.gs_increment(count);
    e.bind(done);
    restore(e);
    e.byte(0xc3);
    // What the second level knows is entered in the first.
    e.bind(absent);
    restore(e);
    save_host(e);
    e.mov(host::RSI, S0);
    call_helper(e, runtime::enter_known_page as *const () as u64, store_simd);
    e.bytes(&[0x48, 0x85, 0xc0]); // test rax, rax
    let unknown = e.label();
    e.jcc(cc::E, unknown);
    reload(e, load_simd);
    e.jmp_to(again);
    e.bind(unknown);
    reload(e, load_simd);
    skip_jump(e);
    e.bind(crossing);
    restore(e);
    skip_jump(e);
}

/// Returns five bytes further: the jump that stands behind the call is skipped.
fn skip_jump(e: &mut Emit) {
    e.bytes(&[0x4c, 0x8b, 0x2c, 0x24]); // mov r13, [rsp]
    e.bytes(&[0x4d, 0x8d, 0x6d, 0x05]); // lea r13, [r13 + 5]
    e.bytes(&[0x4c, 0x89, 0x2c, 0x24]); // mov [rsp], r13
    e.byte(0xc3);
}

fn push(e: &mut Emit, register: u8) {
    if register >= 8 {
        e.byte(0x41);
    }
    e.byte(0x50 | register & 7);
}

fn pop(e: &mut Emit, register: u8) {
    if register >= 8 {
        e.byte(0x41);
    }
    e.byte(0x58 | register & 7);
}

/// Loads flags and registers of the guest and goes to the noted target.
fn load_guest(e: &mut Emit) {
    load_flags(e);
    for guest in 0..16 {
        if let Loc::Host(number) = Mapping::CANONICAL.loc(guest) {
            e.gs_load(number, slot(guest));
        }
    }
    empty_return_stack(e);
    e.bytes(&[0x65, 0xff, 0x24, 0x25]); // jmp gs:[target]
    e.bytes(&jit!(target).to_le_bytes());
}

/// Puts the bottom onto the return stack, which is empty, and eight bytes more: traces find the stack aligned.
pub(super) fn empty_return_stack(e: &mut Emit) {
    e.gs_push(jit!(underflow));
    e.gs_push(jit!(underflow));
}

/// Host flags from [`JitState::flags`]. Uses RAX and S1.
fn load_flags(e: &mut Emit) {
    e.gs_load(S1, jit!(flags));
    // Many times faster than POPF.
    passage::status_from(e, S1);
}

fn store_flags(e: &mut Emit) {
    e.byte(0x9c); // pushfq
    e.bytes(&[0x65, 0x8f, 0x04, 0x25]); // pop gs:[flags]
    e.bytes(&jit!(flags).to_le_bytes());
}

fn save_host(e: &mut Emit) {
    for number in (0..16u8).filter(|&number| number != host::RSP) {
        e.gs_store(jit!(host) + number as i32 * 8, number);
    }
    store_flags(e);
}

/// Calls a helper, `extern "sysv64" fn(&mut Cpu, rsi) -> u64`, from a routine that was called itself.
fn call_helper(e: &mut Emit, helper: u64, store_simd: u64) {
    if_simd_loaded(e, store_simd);
    e.gs_load(host::RDI, jit!(cpu));
    e.bytes(&[0x48, 0x83, 0xec, 0x08]); // sub rsp, 8: align
    e.mov_imm(host::RAX, helper);
    e.bytes(&[0xff, 0xd0]); // call rax
    e.bytes(&[0x48, 0x83, 0xc4, 0x08]); // add rsp, 8
}

/// Goes on outside the trace when the helper returned 0: it has put the guest's state in order.
fn test_leave(e: &mut Emit, settled: u64) {
    e.bytes(&[0x48, 0x85, 0xc0, 0x0f, 0x84]); // test rax, rax; jz
    let distance = settled.wrapping_sub(e.here() + 4) as i32;
    e.bytes(&distance.to_le_bytes());
}

/// Host registers and flags as they were, or as the helper changed them.
fn reload(e: &mut Emit, load_simd: u64) {
    if_simd_loaded(e, load_simd);
    load_flags(e);
    for number in (0..16u8).filter(|&number| number != host::RSP) {
        e.gs_load(number, jit!(host) + number as i32 * 8);
    }
}

pub(super) fn if_simd_loaded(e: &mut Emit, routine: u64) {
    let skip = e.label();
    e.gs_cmp8_imm(jit!(simd_loaded), 0);
    e.jcc(cc::E, skip);
    e.call_to(routine);
    e.bind(skip);
}

/// Moves all vector registers and MXCSR between the register file and the host. Flags are lost.
fn simd(e: &mut Emit, avx: bool, load: bool) {
    let (file, mxcsr) =
        (offset_of!(Cpu, regs) + offset_of!(Regs, ymm), offset_of!(Cpu, regs) + offset_of!(Regs, mxcsr));
    let moves = |e: &mut Emit, wide: bool| {
        for number in 0..16u8 {
            let at = (file + 32 * number as usize) as i32;
            e.byte(0x65);
            if avx {
                // vmovdqu ymm or xmm, gs:[at] and back
                let vex = (!number >> 3 & 1) << 7 | 0x7a | (wide as u8) << 2;
                e.bytes(&[0xc5, vex, if load { 0x6f } else { 0x7f }]);
            } else {
                e.byte(0xf3);
                if number >= 8 {
                    e.byte(0x44);
                }
                e.bytes(&[0x0f, if load { 0x6f } else { 0x7f }]);
            }
            e.bytes(&[(number & 7) << 3 | 4, 0x25]);
            e.bytes(&at.to_le_bytes());
        }
    };
    if avx && load {
        // A register whose upper half may be something makes each SSE instruction that writes it wait for its old
        // value, on many processors. So halves that are all zero are loaded as such.
        let (wide, done) = (e.label(), e.label());
        for number in 0..16u8 {
            let at = (file + 32 * number as usize + 16) as i32;
            // vmovdqu xmm0, gs:[at], then vpor xmm0, xmm0, gs:[at]
            e.bytes(if number == 0 { &[0x65, 0xc5, 0xfa, 0x6f] } else { &[0x65, 0xc5, 0xf9, 0xeb] });
            e.bytes(&[0x04, 0x25]);
            e.bytes(&at.to_le_bytes());
        }
        e.bytes(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]); // vptest xmm0, xmm0
        e.jcc(cc::NE, wide);
        moves(e, false);
        e.jmp(done);
        e.bind(wide);
        moves(e, true);
        e.bind(done);
    } else {
        moves(e, true);
    }
    let mxcsr_op = |e: &mut Emit, operation: u8, at: i32| {
        e.bytes(&[0x65, 0x0f, 0xae, operation << 3 | 4, 0x25]);
        e.bytes(&at.to_le_bytes());
    };
    if load {
        mxcsr_op(e, 2, mxcsr as i32); // ldmxcsr
        e.bytes(&[0x65, 0xc6, 0x04, 0x25]); // mov byte gs:[simd_loaded], 1
        e.bytes(&jit!(simd_loaded).to_le_bytes());
        e.byte(1);
    } else {
        mxcsr_op(e, 3, mxcsr as i32); // stmxcsr
        mxcsr_op(e, 2, jit!(host_mxcsr));
        if avx {
            e.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
        }
    }
}
