//! The common routines for SYSCALL and SYSRET: from the user to the kernel and back without leaving
//! translated code. What is unusual goes to the instruction's handler.

use super::emit::{Emit, Label, cc, host};
use super::fast::{Fast, SYSRET_FLAGS};
use super::mapping::{S0, S1};
use super::state::TARGETS;
use super::stubs::{empty_return_stack, if_simd_loaded, jit};
use crate::cpu::{Cpu, Mode};
use crate::mmu::tlb::MmuIndex;
use crate::regs::Regs;
use crate::signals::{WORD_AT, signal};
use std::mem::offset_of;
use x86::Segment;
use x86::reg::rflags;
use x86::state::seg;

const R11: u8 = 11;

/// Where a field of [`Fast`] is, from the start of the vCPU.
macro_rules! fast {
    ($field:ident) => {
        jit!(fast) + offset_of!(Fast, $field) as i32
    };
}

/// Where a field of [`Mode`] is, from the start of the vCPU.
macro_rules! mode {
    ($field:ident) => {
        (offset_of!(Cpu, mode) + offset_of!(Mode, $field)) as i32
    };
}

/// SYSCALL of 64-bit user code: the next instruction's address is in S0, the site noted, the mapping
/// canonical.
pub(super) fn syscall(e: &mut Emit, hand: u64, store_simd: u64) -> u64 {
    e.align(16, 0);
    let entry = e.here();
    let slow = begin(e);
    // R11 gets RFLAGS without RF, RCX the return address.
    e.and_imm(S1, rflags::STATUS as i32);
    e.gs_or(S1, jit!(system_flags));
    e.and_imm(S1, !(rflags::RF as i32));
    e.mov(R11, S1);
    e.mov(host::RCX, S0);
    e.gs_and(S1, fast!(keep));
    e.gs_store(jit!(system_flags), S1);
    e.gs_or32_imm(jit!(system_flags), rflags::FIXED as u32);
    e.gs_store8_imm(mode!(cpl), 0);
    copy8(e, fast!(kernel_mmu), mode!(data));
    copy8(e, fast!(kernel_key), mode!(key));
    copy_segment(e, fast!(kernel_cs), seg::CS);
    copy_segment(e, fast!(kernel_ss), seg::SS);
    // The kernel hardly uses vector registers, and calls to helpers are cheaper without.
    if_simd_loaded(e, store_simd);
    e.gs_store8_imm(jit!(simd_loaded), 0);
    e.gs_load8(S1, fast!(kernel_mmu));
    e.gs_load_scaled(S1, S1, 3, jit!(underflows));
    forget_returns(e);
    e.gs_load(S0, fast!(lstar));
    e.movzx16(S1, S0);
    e.lea(true, S1, None, Some((S1, 3)), 0);
    e.gs_add(S1, fast!(kernel_targets));
    e.gs_add32_imm(fast!(one), 0);
    e.gs_jmp(S1, jit!(targets));
    leave_to(e, slow, hand);
    entry
}

/// SYSRET to 64-bit code: the site noted, the mapping canonical.
pub(super) fn sysret(e: &mut Emit, hand: u64) -> u64 {
    e.align(16, 0);
    let entry = e.here();
    let slow = begin(e);
    // An interrupt that waited for this.
    e.gs_load(S0, jit!(signals));
    e.test32_imm_at(S0, WORD_AT, signal::INTERRUPT);
    e.jcc(cc::NE, slow);
    // What is not an address of the lower half may fault.
    e.mov(S0, host::RCX);
    e.shr(S0, 47);
    e.jcc(cc::NE, slow);
    e.mov(S0, R11);
    // AC makes another user of the user, one whose accesses are checked.
    e.and32_imm(S0, (rflags::TF | rflags::IF | rflags::AC) as u32);
    e.cmp_imm(S0, rflags::IF as i32);
    e.jcc(cc::NE, slow);
    e.mov(S0, R11);
    e.and32_imm(S0, (SYSRET_FLAGS & !rflags::STATUS) as u32);
    e.gs_store(jit!(system_flags), S0);
    e.gs_or32_imm(jit!(system_flags), rflags::FIXED as u32);
    e.gs_store8_imm(mode!(cpl), 3);
    e.gs_store8_imm(mode!(data), MmuIndex::User as u8);
    copy8(e, fast!(user_key), mode!(key));
    copy_segment(e, fast!(user_cs), seg::CS);
    copy_segment(e, fast!(user_ss), seg::SS);
    e.gs_load(S1, jit!(underflows) + MmuIndex::User as i32 * 8);
    forget_returns(e);
    e.gs_store(jit!(saved_rax), host::RAX);
    e.mov(S1, R11);
    status_from(e, S1);
    e.gs_load(host::RAX, jit!(saved_rax));
    e.mov(S0, host::RCX);
    e.movzx16(S1, S0);
    e.gs_jmp_scaled(S1, jit!(targets) + (MmuIndex::User as usize * TARGETS * 8) as i32);
    leave_to(e, slow, hand);
    entry
}

/// Sets the status flags as RFLAGS in `register`, R8 or higher, has them. Uses RAX and `register`.
pub(super) fn status_from(e: &mut Emit, register: u8) {
    e.mov32(host::RAX, register);
    e.shl(host::RAX, 8);
    e.shr(register, 11);
    e.and32_imm(register, 1);
    e.mov8(host::RAX, register);
    e.flags_from_ax();
}

/// Empties the return stack: who was called with one privilege does not return with another. S1 has the new bottom.
fn forget_returns(e: &mut Emit) {
    e.gs_store(jit!(underflow), S1);
    e.gs_load(host::RSP, jit!(host_rsp));
    empty_return_stack(e);
}

/// Keeps the flags in S1 and looks whether this is the usual case.
fn begin(e: &mut Emit) -> Label {
    let slow = e.label();
    e.host_flags_to(S1);
    e.gs_cmp8_imm(fast!(ready), 0);
    e.jcc(cc::E, slow);
    slow
}

/// The way to the handler, with the flags from S1.
fn leave_to(e: &mut Emit, slow: Label, hand: u64) {
    e.bind(slow);
    e.host_flags_from(S1);
    e.jmp_to(hand);
}

fn copy8(e: &mut Emit, from: i32, to: i32) {
    e.gs_load8(S1, from);
    e.gs_store8(to, S1);
}

fn copy_segment(e: &mut Emit, from: i32, number: usize) {
    const { assert!(size_of::<Segment>() == 16) };
    let to = (offset_of!(Cpu, regs) + offset_of!(Regs, seg) + number * size_of::<Segment>()) as i32;
    for half in [0, 8] {
        e.gs_load(S1, from + half);
        e.gs_store(to + half, S1);
    }
}
