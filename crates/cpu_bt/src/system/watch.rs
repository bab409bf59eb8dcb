//! Data breakpoints (SDM vol. 3B, §18.2.4).
//!
//! While one is armed the loop executes single instructions and asks here first. An instruction that is
//! going to touch watched bytes is executed here and followed by its trap. What it touches is found from
//! its operands; accesses of the processor itself (tables, frames of interrupts) are not watched.

use super::debug::{Breakpoint, Condition};
use crate::block::Block;
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::{RCX, RIP};
use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, Register, UsedMemory,
};
use memory::{Bytes, GuestAddress, PAGE_SIZE};
use x86::Vector;
use x86::reg::{dr6, rflags};
use x86::state::seg;

impl Cpu {
    /// Executes the instruction at `linear` if it is going to touch watched data, and traps after it.
    pub(super) fn execute_watched(&mut self, linear: u64) -> Result<()> {
        let is_watch = |one: &Breakpoint| matches!(one.condition, Condition::Write | Condition::ReadOrWrite);
        if !self.breakpoints().any(|one| is_watch(&one)) {
            return Ok(());
        }
        let block = self.find_block(linear)?;
        let Some(insn) = self.decode_again(&block) else { return Ok(()) };
        let mut hit = 0;
        for used in InstructionInfoFactory::new().info(&insn).used_memory() {
            for one in self.breakpoints().filter(is_watch) {
                if self.touches(&insn, used, &one) {
                    hit |= one.status;
                }
            }
        }
        if hit == 0 {
            return Ok(());
        }

        let (start, op) = (self.regs.r[RIP], &block.ops()[0]);
        let stepping = self.regs.flag(rflags::TF);
        self.shadow = false;
        self.regs.r[RIP] = start.wrapping_add(op.len as u64);
        match (op.run)(self, op) {
            Err(fault) if !fault.is_leave() => {
                self.regs.r[RIP] = start;
                return Err(fault);
            }
            Err(_) if self.exit.is_some() => return Err(Fault::LEAVE),
            _ => {}
        }
        self.code_modified = false;
        if !self.mode.is_64() {
            self.regs.r[RIP] &= 0xffff_ffff;
        }
        self.sys.dr6 = self.sys.dr6 & !0xf | hit | if stepping { dr6::BS } else { 0 };
        Err(Fault::new(Vector::Debug))
    }

    /// The first instruction of a block, with its real address.
    fn decode_again(&self, block: &Block) -> Option<Instruction> {
        let len = block.ops()[0].len as usize;
        let mut bytes = [0; 15];
        let here = ((PAGE_SIZE - block.gpa % PAGE_SIZE) as usize).min(len);
        let ram = self.ram.guest();
        ram.read_slice(&mut bytes[..here], GuestAddress(block.gpa)).ok()?;
        if here < len {
            ram.read_slice(&mut bytes[here..len], GuestAddress(block.second_page? & !0xfff)).ok()?;
        }
        let bits = self.mode.code_bits as u32;
        let insn = Decoder::with_ip(bits, &bytes[..len], self.regs.r[RIP], DecoderOptions::NONE).decode();
        (!insn.is_invalid()).then_some(insn)
    }

    /// Whether an access is one that a breakpoint waits for.
    fn touches(&self, insn: &Instruction, used: &UsedMemory, breakpoint: &Breakpoint) -> bool {
        use OpAccess::*;
        let (reads, writes) = match used.access() {
            Read | CondRead => (true, false),
            Write | CondWrite => (false, true),
            ReadWrite | ReadCondWrite => (true, true),
            _ => return false,
        };
        if !writes && (!reads || breakpoint.condition == Condition::Write) {
            return false;
        }
        let Some(address) = used.virtual_address(0, |register, _, _| self.register_value(register)) else {
            return false;
        };
        let size = used.memory_size().size().max(1) as u64;
        let (mut first, mut len) = (self.wrap_linear(address), size);
        if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
            // All elements, in the direction of DF.
            let count = self.register_value(count_register(used)).unwrap_or(0);
            if count == 0 {
                return false;
            }
            len = size.saturating_mul(count);
            if self.regs.flag(rflags::DF) {
                first = first.wrapping_sub(len - size);
            }
        }
        // Overlap, also around the end of the address space.
        breakpoint.address.wrapping_sub(first) < len
            || first.wrapping_sub(breakpoint.address) < breakpoint.len
    }

    /// The value of an address register, or the base of a segment.
    fn register_value(&self, register: Register) -> Option<u64> {
        if register.is_segment_register() {
            let index = register.number();
            let flat = self.mode.is_64() && !matches!(index, seg::FS | seg::GS);
            return Some(if flat { 0 } else { self.regs.seg[index].base });
        }
        if !register.is_gpr() {
            return None;
        }
        let value = self.regs.r[register.full_register().number()];
        Some(value & u64::MAX >> (64 - 8 * register.size()))
    }
}

/// The counter of a repeated string instruction: as wide as its addresses.
fn count_register(used: &UsedMemory) -> Register {
    debug_assert!(RCX == Register::RCX.number());
    match used.base().size() {
        2 => Register::CX,
        4 => Register::ECX,
        _ => Register::RCX,
    }
}
