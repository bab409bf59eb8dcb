//! Host functions around one instruction.
//!
//! ```text
//! save host registers     push of the callee-saved ones among those used
//! load x87                fxrstor64           (x87 and MMX)
//! load MXCSR              ldmxcsr             (floating point)
//! load vectors            movaps / vmovaps
//! load flags              push; and; popfq    (if read, or perhaps left alone)
//! load general registers  mov
//! THE INSTRUCTION         memory operand at [M]
//! store general registers mov
//! store flags             pushfq; pop; merge
//! store vectors           movaps / vmovaps; vzeroupper
//! store MXCSR, x87        stmxcsr; fxsave64; fninit
//! restore host registers  pop; ret
//! ```
//!
//! Guest registers sit in the host registers of the same name, except RSP, which the host needs: it is
//! renamed. Two more host registers that the instruction does not use hold the addresses of [`Regs`] and
//! of the memory operand.

use super::classify::{Class, Memory, Plan};
use crate::regs::{RSP, Regs};
use iced_x86::{Encoder, Instruction, OpKind, Register};
use std::mem::offset_of;

/// MXCSR of Rust code: everything masked, round to nearest.
const HOST_MXCSR: u32 = 0x1f80;
/// Where a function finds the MXCSR to execute with, and leaves what became of it: the field of the
/// FXSAVE image that FXRSTOR loads it from.
pub(super) const IMAGE_MXCSR: usize = 24;

/// Host registers that the System V ABI makes a function keep (RSP apart).
const CALLEE_SAVED: u16 = 1 << 3 | 1 << 5 | 0xf << 12;
/// Candidates for addresses, best first. R12 is not among them: as a base it needs a longer encoding.
const POINTERS: [u8; 13] = [7, 6, 2, 1, 8, 9, 10, 11, 0, 3, 5, 14, 15];
const RDI: u8 = 7;
const RSI: u8 = 6;

/// The instruction cut loose from its address: base, index, displacement and segment removed, so that
/// what remains is what it does to registers.
pub(crate) fn without_address(insn: &Instruction) -> Instruction {
    let mut bare = *insn;
    bare.set_segment_prefix(Register::None);
    bare.set_has_rep_prefix(false);
    bare.set_has_repne_prefix(false);
    bare.set_has_xacquire_prefix(false);
    bare.set_has_xrelease_prefix(false);
    if (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory) {
        bare.set_memory_base(Register::None);
        bare.set_memory_index(Register::None);
        bare.set_memory_index_scale(1);
        bare.set_memory_displacement64(0);
        bare.set_memory_displ_size(8);
    }
    bare
}

/// The bytes of the host function for an instruction from [`without_address`]; `None` when the host
/// cannot encode it.
pub(super) fn build(bare: &Instruction, plan: &Plan) -> Option<Vec<u8>> {
    let mut insn = *bare;
    let short = uses_high_byte(&insn);
    let mut taken = plan.gprs | 1 << RSP;
    let mut pick = |preferred: u8, avoid: u8| {
        let free = |number: &u8| taken >> number & 1 == 0 && *number != avoid && !(short && *number >= 8);
        let number = [preferred].into_iter().chain(POINTERS).find(free)?;
        taken |= 1 << number;
        Some(number)
    };
    // The arguments arrive in RDI and RSI: neither may be overwritten before it is moved.
    let regs = pick(RDI, RSI)?;
    let memory = if plan.memory == Memory::None { RSI } else { pick(RSI, RDI)? };
    let mut gprs = plan.gprs & !(1 << RSP);
    let mut gprs_written = plan.gprs_written & !(1 << RSP);
    let mut renamed = None;
    if plan.gprs >> RSP & 1 != 0 {
        let number = pick(2, 2)?;
        rename_stack_pointer(&mut insn, number)?;
        renamed = Some(number);
        gprs |= 1 << number;
        gprs_written |= if plan.gprs_written >> RSP & 1 != 0 { 1 << number } else { 0 };
    }
    if plan.memory != Memory::None {
        insn.set_memory_base(gpr64(memory));
        insn.set_memory_displ_size(0);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, 0).ok()?;
    let encoded = encoder.take_buffer();

    let place = |number: u8| {
        let guest = if Some(number) == renamed { RSP } else { number as usize };
        (offset_of!(Regs, r) + 8 * guest) as i32
    };
    let vector_place = |number: u8| (offset_of!(Regs, ymm) + 32 * number as usize) as i32;
    let fx = offset_of!(Regs, fx) as i32;
    let x87 = matches!(plan.class, Class::X87 | Class::Mmx | Class::MmxSse);
    let avx = plan.class == Class::Avx;

    let mut code = Assembler { code: Vec::with_capacity(96), base: regs };
    let saved: Vec<u8> = bits((gprs | 1 << regs | 1 << memory) & CALLEE_SAVED).collect();
    saved.iter().for_each(|number| code.push(*number));
    if memory != RSI && plan.memory != Memory::None {
        code.copy(memory, RSI);
    }
    if regs != RDI {
        code.copy(regs, RDI);
    }
    match (x87, plan.mxcsr) {
        (true, _) => code.fxrstor(fx),
        (false, true) => code.ldmxcsr(fx + IMAGE_MXCSR as i32),
        _ => {}
    }
    for number in bits(plan.vectors) {
        code.load_vector(number, vector_place(number), avx);
    }
    if plan.flags_in != 0 {
        code.load_flags(offset_of!(Regs, rflags) as i32);
    }
    for number in bits(gprs) {
        code.load(number, place(number));
    }
    code.code.extend(encoded);
    for number in bits(gprs_written) {
        code.store(number, place(number));
    }
    if plan.flags_out != 0 {
        let mut scratch = [0, 1, 2].into_iter().filter(|number| *number != regs);
        let (a, b) = (scratch.next()?, scratch.next()?);
        code.store_flags(offset_of!(Regs, rflags) as i32, plan.flags_out as i32, a, b);
    }
    for number in bits(plan.vectors_written) {
        code.store_vector(number, vector_place(number), avx);
    }
    if avx {
        code.vzeroupper();
    }
    if x87 {
        code.fxsave(fx);
        code.fninit();
    }
    if plan.mxcsr {
        if !x87 {
            code.stmxcsr(fx + IMAGE_MXCSR as i32);
        }
        code.reset_mxcsr();
    }
    saved.iter().rev().for_each(|number| code.pop(*number));
    code.ret();
    Some(code.code)
}

fn uses_high_byte(insn: &Instruction) -> bool {
    let high = |register| matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Register && high(insn.op_register(op)))
}

/// Replaces RSP and its parts among the operands; `None` when the instruction uses it without naming it.
fn rename_stack_pointer(insn: &mut Instruction, number: u8) -> Option<()> {
    let mut named = false;
    for operand in 0..insn.op_count() {
        if insn.op_kind(operand) != OpKind::Register {
            continue;
        }
        let new = match insn.op_register(operand) {
            Register::RSP => gpr64(number),
            Register::ESP => Register::EAX + number as u32,
            Register::SP => Register::AX + number as u32,
            Register::SPL if number < 4 => Register::AL + number as u32,
            Register::SPL => Register::SPL + (number as u32 - 4),
            _ => continue,
        };
        insn.set_op_register(operand, new);
        named = true;
    }
    named.then_some(())
}

fn gpr64(number: u8) -> Register {
    Register::RAX + number as u32
}

/// Numbers of the bits that are set.
fn bits(set: u16) -> impl Iterator<Item = u8> {
    (0..16).filter(move |number| set >> number & 1 != 0)
}

/// Encodes the few instructions around the guest's. Memory operands are at a distance from `base`, which
/// is not RSP or R12 (SDM vol. 2, chapter 2).
struct Assembler {
    code: Vec<u8>,
    base: u8,
}

impl Assembler {
    fn operand(&mut self, register: u8, displacement: i32) {
        self.code.push(0x80 | (register & 7) << 3 | self.base & 7);
        self.code.extend(displacement.to_le_bytes());
    }

    fn rex(&mut self, wide: bool, register: u8) {
        let rex = 0x40 | (wide as u8) << 3 | (register >> 3) << 2 | self.base >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
    }

    fn with_memory(&mut self, wide: bool, opcode: &[u8], register: u8, displacement: i32) {
        self.rex(wide, register);
        self.code.extend(opcode);
        self.operand(register, displacement);
    }

    fn load(&mut self, register: u8, from: i32) {
        self.with_memory(true, &[0x8b], register, from);
    }

    fn store(&mut self, register: u8, to: i32) {
        self.with_memory(true, &[0x89], register, to);
    }

    fn copy(&mut self, to: u8, from: u8) {
        self.code.extend([0x48 | (from >> 3) << 2 | to >> 3, 0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    fn push(&mut self, register: u8) {
        if register >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x50 | register & 7);
    }

    fn pop(&mut self, register: u8) {
        if register >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x58 | register & 7);
    }

    fn vector(&mut self, opcode: u8, register: u8, displacement: i32, ymm: bool) {
        if !ymm {
            return self.with_memory(false, &[0x0f, opcode], register, displacement);
        }
        // VEX.256.0F.WIG: VMOVAPS.
        self.code.extend([
            0xc4,
            (!register >> 3 & 1) << 7 | 0x40 | (!self.base >> 3 & 1) << 5 | 1,
            0x7c,
            opcode,
        ]);
        self.operand(register, displacement);
    }

    fn load_vector(&mut self, register: u8, from: i32, ymm: bool) {
        self.vector(0x28, register, from, ymm);
    }

    fn store_vector(&mut self, register: u8, to: i32, ymm: bool) {
        self.vector(0x29, register, to, ymm);
    }

    fn vzeroupper(&mut self) {
        self.code.extend([0xc5, 0xf8, 0x77]);
    }

    /// Loads the status flags and clears the others that POPF may change at this privilege.
    fn load_flags(&mut self, from: i32) {
        self.with_memory(false, &[0xff], 6, from);
        self.code.extend([0x48, 0x81, 0x24, 0x24]);
        self.code.extend((x86::reg::rflags::STATUS as u32).to_le_bytes());
        self.code.push(0x9d);
    }

    /// Stores the flags in `mask`; `a` and `b` (below 8) are overwritten.
    fn store_flags(&mut self, to: i32, mask: i32, a: u8, b: u8) {
        self.code.push(0x9c);
        self.pop(a);
        self.load(b, to);
        self.code.extend([0x48, 0x81, 0xe0 | a]);
        self.code.extend(mask.to_le_bytes());
        self.code.extend([0x48, 0x81, 0xe0 | b]);
        self.code.extend((!mask).to_le_bytes());
        self.code.extend([0x48, 0x09, 0xc0 | b << 3 | a]);
        self.store(a, to);
    }

    fn fxsave(&mut self, to: i32) {
        self.with_memory(true, &[0x0f, 0xae], 0, to);
    }

    fn fxrstor(&mut self, from: i32) {
        self.with_memory(true, &[0x0f, 0xae], 1, from);
    }

    fn ldmxcsr(&mut self, from: i32) {
        self.with_memory(false, &[0x0f, 0xae], 2, from);
    }

    fn stmxcsr(&mut self, to: i32) {
        self.with_memory(false, &[0x0f, 0xae], 3, to);
    }

    /// Gives Rust its MXCSR back. Overwrites RAX.
    fn reset_mxcsr(&mut self) {
        self.code.push(0x68);
        self.code.extend(HOST_MXCSR.to_le_bytes());
        self.code.extend([0x0f, 0xae, 0x14, 0x24]);
        self.pop(0);
    }

    /// Leaves the x87 unit as the ABI wants it: empty, and nothing pending.
    fn fninit(&mut self) {
        self.code.extend([0xdb, 0xe3]);
    }

    fn ret(&mut self) {
        self.code.push(0xc3);
    }
}
