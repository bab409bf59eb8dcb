//! From guest bytes to blocks.

use super::arena::Head;
use super::{Block, Op};
use crate::cpu::{BlockKey, Cpu};
use crate::fault::{Fault, Result};
use crate::mmu::walk::Access;
use crate::regs::{FLAT, HIGH, RIP, ZERO};
use crate::vm::VmShared;
use crate::{interp, native, system};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use memory::PAGE_SIZE;
use std::ptr::NonNull;
use x86::state::seg;

/// Longest instruction in bytes (SDM vol. 2A, §2.3.11).
pub(crate) const INSTRUCTION_LEN_MAX: usize = 15;
/// Most instructions in a block.
const OPS_MAX: usize = 64;
/// Bytes that are looked at to decode a block.
const BYTES_MAX: usize = 512;

impl Cpu {
    /// The physical address that code at linear address `linear` is fetched from.
    #[inline]
    pub(crate) fn fetch_address(&mut self, linear: u64) -> Result<u64> {
        let user = self.mode.is_user();
        if let Some(page) = self.tlb.lookup_fetch(linear, user) {
            return Ok(page | linear & 0xfff);
        }
        self.counts.tlb_misses_fetch.add();
        let translation = self.translate(linear, Access::Fetch, self.fetch_mmu())?;
        if translation.page_size > PAGE_SIZE {
            self.tlb.note_large(linear, translation.page_size);
        }
        self.tlb.insert_fetch(linear, user, translation.gpa, translation.global);
        Ok(translation.gpa)
    }

    /// Decodes the block at physical address `gpa`, which is where `linear` leads.
    pub(crate) fn decode_block(&mut self, linear: u64, gpa: u64) -> Result<NonNull<Block>> {
        self.vm.counters.blocks.add();
        // Watch first, then read: a write in between changes the version and unmakes the block.
        let version = self.watch_code_page(gpa);
        let room = (PAGE_SIZE - gpa % PAGE_SIZE) as usize;
        let mut bytes = [0u8; BYTES_MAX];
        let bytes = &mut bytes[..room.min(BYTES_MAX)];
        self.read_code(gpa, bytes)?;

        let mut decoder = Decoder::with_ip(self.mode.code_bits as u32, bytes, 0, DecoderOptions::NONE);
        let mut ops = std::mem::take(&mut self.blocks.scratch);
        ops.clear();
        let mut insn = Instruction::default();
        while ops.len() < OPS_MAX && decoder.can_decode() {
            let start = decoder.position();
            decoder.decode_out(&mut insn);
            if insn.is_invalid() {
                let cut_short = decoder.last_error() == DecoderError::NoMoreBytes && bytes.len() == room;
                if cut_short && ops.is_empty() {
                    return self.decode_across_pages(linear, gpa, version);
                }
                if cut_short || decoder.last_error() == DecoderError::NoMoreBytes {
                    break;
                }
            }
            let op = self.make_op(&insn, start as u16);
            let ends = op.ends_block;
            ops.push(op);
            if ends {
                break;
            }
        }
        let len = ops.last().map_or(0, |op| op.offset as usize + op.len as usize);
        self.vm.note_code_lines(gpa, len as u64);
        // Writes from now on are noticed. One that came between reading and noting would not be.
        let mut again = [0u8; BYTES_MAX];
        let again = &mut again[..len.min(bytes.len())];
        self.read_code(gpa, again)?;
        // The block is void from the start then, and decoded anew the next time: no retry here, which
        // another vCPU could prolong for ever.
        let version = if *again == bytes[..again.len()] { version } else { version.wrapping_sub(1) };
        let block =
            self.blocks.place(Head { gpa, second_page: None, versions: [version, 0] }, &mut ops, again);
        self.blocks.scratch = ops;
        Ok(block)
    }

    /// Makes a block valid again whose page was written since, if its own bytes are as they were.
    pub(crate) fn renew_block(&mut self, block: &Block) -> Result<bool> {
        if block.second_page.is_some() {
            return Ok(false);
        }
        let version = self.watch_code_page(block.gpa);
        // Writes from here on are noticed, and give the page another version.
        self.vm.note_code_lines(block.gpa, block.bytes().len() as u64);
        let mut bytes = [0u8; BYTES_MAX];
        let bytes = &mut bytes[..block.bytes().len()];
        self.read_code(block.gpa, bytes)?;
        let same = *bytes == *block.bytes();
        if same {
            block.versions.set([version, 0]);
        }
        Ok(same)
    }

    /// Decodes the single instruction at `linear` that continues on the next page.
    fn decode_across_pages(&mut self, linear: u64, gpa: u64, version: u32) -> Result<NonNull<Block>> {
        let mut bytes = [0u8; INSTRUCTION_LEN_MAX];
        let here = (PAGE_SIZE - gpa % PAGE_SIZE) as usize;
        let next = (linear & !0xfff).wrapping_add(PAGE_SIZE);
        let next = if self.mode.is_64() { next } else { next & 0xffff_ffff };
        let second = self.fetch_address(next)?;
        let second_version = self.watch_code_page(second);
        // Marked first: who writes the bytes after they were read finds the lines, and gives the page another version.
        self.vm.note_code_lines(gpa, here as u64);
        self.vm.note_code_lines(second, INSTRUCTION_LEN_MAX as u64);
        self.read_code(gpa, &mut bytes[..here])?;
        self.read_code(second, &mut bytes[here..])?;
        let mut decoder = Decoder::with_ip(self.mode.code_bits as u32, &bytes, 0, DecoderOptions::NONE);
        let mut op = self.make_op(&decoder.decode(), 0);
        op.ends_block = true;
        let head = Head { gpa, second_page: Some(second), versions: [version, second_version] };
        Ok(self.blocks.place(head, &mut vec![op], &[]))
    }

    /// Reads code bytes of one page. Code outside RAM does not execute.
    fn read_code(&mut self, gpa: u64, bytes: &mut [u8]) -> Result<()> {
        let Some(page) = self.ram.code_page(gpa) else {
            return Err(
                self.cannot_continue(format!("code at physical address {gpa:#x}, which is not memory"))
            );
        };
        // SAFETY: the bytes lie in one page of RAM. Others may write it meanwhile; then the page's
        // version changes and what was decoded is not used again.
        unsafe { std::ptr::copy(page.ptr.add((gpa % PAGE_SIZE) as usize), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Turns an instruction, decoded as if it stood at its offset in the block, into an op.
    fn make_op(&mut self, insn: &Instruction, offset: u16) -> Op {
        let mut op = Op::shell(insn, offset, self.mode.key);
        if insn.is_invalid() {
            op.run = |_, _| Err(Fault::UNDEFINED);
            op.ends_block = true;
            op.len = op.len.max(1);
        } else if !interp::select(insn, &mut op, self.mode.key)
            && !system::select(&self.vm, insn, &mut op)
            && !native::select(self, insn, &mut op)
        {
            op.run = |_, _| Err(Fault::UNDEFINED);
            op.ends_block = true;
        }
        op
    }
}

/// Who executes an instruction in code of a kind.
pub(crate) fn classify(vm: &VmShared, insn: &Instruction, key: BlockKey) -> Class {
    let mut op = Op::shell(insn, 0, key);
    if interp::select(insn, &mut op, key) {
        Class::Interpreted
    } else if system::select(vm, insn, &mut op) {
        Class::System
    } else {
        Class::Other
    }
}

/// Who executes an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A handler of its own.
    Interpreted,
    /// A handler of a system instruction.
    System,
    /// The host, or nobody.
    Other,
}

impl Op {
    /// An op without operands and handler.
    pub(super) fn nothing() -> Op {
        Op {
            run: |_, _| Err(Fault::UNDEFINED),
            imm: 0,
            disp: 0,
            detail: None,
            offset: 0,
            len: 0,
            dst: 0,
            src: 0,
            base: ZERO as u8,
            index: ZERO as u8,
            scale: 0,
            segment: FLAT as u8,
            address_cut: 0,
            ends_block: false,
        }
    }

    /// An op with its operands filled in and no handler yet.
    fn shell(insn: &Instruction, offset: u16, key: BlockKey) -> Op {
        let mut op = Op { offset, len: insn.len() as u8, ..Op::nothing() };
        let mut registers = 0;
        for operand in 0..insn.op_count() {
            match insn.op_kind(operand) {
                OpKind::Register => {
                    if let Some(number) = gpr_number(insn.op_register(operand)) {
                        match registers {
                            0 => op.dst = number,
                            1 => op.src = number,
                            _ => {}
                        }
                        registers += 1;
                    }
                }
                OpKind::Memory => op.fill_memory(insn, key),
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    op.imm = insn.near_branch_target().wrapping_sub(insn.next_ip());
                }
                OpKind::FarBranch16 | OpKind::FarBranch32 => {}
                kind if is_immediate(kind) && operand + 1 >= insn.op_count().min(2) => {
                    op.imm = insn.immediate(operand);
                }
                _ => {}
            }
        }
        op
    }

    fn fill_memory(&mut self, insn: &Instruction, key: BlockKey) {
        let base = insn.memory_base();
        self.base = match base {
            Register::None => ZERO as u8,
            Register::RIP | Register::EIP => RIP as u8,
            _ => gpr_number(base).unwrap_or(ZERO as u8),
        };
        // A vector index (VSIB) is no general register; its handler looks at the instruction.
        self.index = gpr_number(insn.memory_index()).unwrap_or(ZERO as u8);
        self.scale = insn.memory_index_scale().trailing_zeros() as u8;
        self.disp = insn.memory_displacement64();
        if self.base == RIP as u8 {
            self.disp = self.disp.wrapping_sub(insn.next_ip());
        }
        self.address_cut = match address_size(insn) {
            8 => 0,
            4 => 32,
            _ => 48,
        };
        let segment = segment_number(insn.memory_segment());
        self.segment = match key.is_64() && !matches!(segment as usize, seg::FS | seg::GS | seg::SS) {
            true => FLAT as u8,
            false => segment,
        };
    }
}

impl BlockKey {
    /// Whether it is 64-bit code.
    pub(crate) fn is_64(self) -> bool {
        self.0 & 0x7f == 4
    }
}

fn is_immediate(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Immediate8
            | Immediate8_2nd
            | Immediate16
            | Immediate32
            | Immediate64
            | Immediate8to16
            | Immediate8to32
            | Immediate8to64
            | Immediate32to64
    )
}

/// Size in bytes of the addresses that the instruction's memory operand is computed with.
pub(crate) fn address_size(insn: &Instruction) -> u32 {
    let by_register = |register: Register| match register {
        Register::RIP => 8,
        Register::EIP => 4,
        _ => register.size() as u32,
    };
    if insn.memory_base() != Register::None {
        by_register(insn.memory_base())
    } else if insn.memory_index().is_gpr() {
        by_register(insn.memory_index())
    } else {
        match insn.memory_displ_size() {
            2 => 2,
            4 => 4,
            _ => 8,
        }
    }
}

/// The number of a segment register, ES to GS.
pub(crate) fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => seg::ES as u8,
        Register::CS => seg::CS as u8,
        Register::SS => seg::SS as u8,
        Register::FS => seg::FS as u8,
        Register::GS => seg::GS as u8,
        _ => seg::DS as u8,
    }
}

/// The number of a general register of any size, with [`HIGH`] for AH, CH, DH, BH.
pub(crate) fn gpr_number(register: Register) -> Option<u8> {
    match register {
        Register::AH => Some(HIGH),
        Register::CH => Some(HIGH | 1),
        Register::DH => Some(HIGH | 2),
        Register::BH => Some(HIGH | 3),
        _ if register.is_gpr() => Some(register.full_register().number() as u8),
        _ => None,
    }
}
