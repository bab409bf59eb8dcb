//! Port input and output (SDM vol. 1, chapter 19).

use super::After::{self, *};
use super::operand::is_memory;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use crate::regs::{RAX, RCX, RDI, RDX, RIP, RSI};
use crate::signals::signal;
use iced_x86::{Code, Instruction, OpKind};
use x86::reg::rflags;
use x86::state::seg;

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    use Code::*;
    Some(match insn.code() {
        In_AL_imm8 | In_AL_DX => (input::<u8>, Continues),
        In_AX_imm8 | In_AX_DX => (input::<u16>, Continues),
        In_EAX_imm8 | In_EAX_DX => (input::<u32>, Continues),
        Out_imm8_AL | Out_DX_AL => (output::<u8>, Continues),
        Out_imm8_AX | Out_DX_AX => (output::<u16>, Continues),
        Out_imm8_EAX | Out_DX_EAX => (output::<u32>, Continues),
        Insb_m8_DX => (input_string::<u8>, Ends),
        Insw_m16_DX => (input_string::<u16>, Ends),
        Insd_m32_DX => (input_string::<u32>, Ends),
        Outsb_DX_m8 => (output_string::<u8>, Ends),
        Outsw_DX_m16 => (output_string::<u16>, Ends),
        Outsd_DX_m32 => (output_string::<u32>, Ends),
        _ => return None,
    })
}

/// The port of IN or OUT.
fn port(cpu: &Cpu, op: &Op) -> u16 {
    let insn = op.insn();
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Immediate8, _) | (_, OpKind::Immediate8) => insn.immediate8() as u16,
        _ => cpu.regs.get(RDX as u8),
    }
}

fn input<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let port = port(cpu, op);
    cpu.check_port(port, T::BYTES)?;
    let value = cpu.read_port::<T>(port);
    cpu.regs.set(RAX as u8, value);
    Ok(cpu.after_port())
}

fn output<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let port = port(cpu, op);
    cpu.check_port(port, T::BYTES)?;
    let value = cpu.regs.get::<T>(RAX as u8);
    cpu.write_port(port, value);
    Ok(cpu.after_port())
}

impl Cpu {
    /// Whether the program may access `len` ports from `port`: by IOPL, or by the I/O permission map in
    /// the TSS (SDM vol. 1, §19.5).
    fn check_port(&mut self, port: u16, len: usize) -> Result<()> {
        let iopl = (self.regs.rflags >> 12 & 3) as u8;
        if !self.mode.protected || (!self.mode.v86 && self.cpl() <= iopl) {
            return Ok(());
        }
        let tr = self.sys.tr;
        if tr.is_unusable() || tr.kind() & 8 == 0 || tr.limit < 0x67 {
            return Err(Fault::GP0);
        }
        let map = self.read_system::<u16>(tr.base, 0x66)? as u64;
        let at = map + port as u64 / 8;
        // Two bytes are always read, because the ports may be on both sides of a byte.
        if at + 1 > tr.limit as u64 {
            return Err(Fault::GP0);
        }
        let low = self.read_system::<u8>(tr.base, at)? as u16;
        let high = self.read_system::<u8>(tr.base, at + 1)? as u16;
        let bits = (high << 8 | low) >> (port % 8) & ((1 << len) - 1);
        if bits != 0 { Err(Fault::GP0) } else { Ok(()) }
    }

    fn read_port<T: Int>(&mut self, port: u16) -> T {
        self.vm.counters.pio.add();
        let mut bytes = [0xff; 8];
        self.io().pio_read(port, &mut bytes[..T::BYTES]);
        T::from_u64(u64::from_le_bytes(bytes))
    }

    fn write_port<T: Int>(&mut self, port: u16, value: T) {
        self.vm.counters.pio.add();
        self.io().pio_write(port, &value.to_u64().to_le_bytes()[..T::BYTES]);
    }

    /// A device may have asked this vCPU to stop or interrupted it: then the block is left.
    fn after_port(&self) -> Flow {
        if self.is_wanted() || self.exit.is_some() { Flow::Branch } else { Flow::Next }
    }

    /// Whether a request of another thread or an interrupt wants to be looked at.
    fn is_wanted(&self) -> bool {
        let pending = self.signals.pending();
        pending & !signal::INTERRUPT != 0 || (pending != 0 && self.regs.flag(rflags::IF))
    }

    /// Repeats a string instruction: `once` does one element. Between elements it can be interrupted,
    /// with the registers saying how much is left.
    fn repeat(&mut self, op: &Op, mut once: impl FnMut(&mut Cpu) -> Result<()>) -> Result<Flow> {
        let insn = op.insn();
        if !insn.has_rep_prefix() && !insn.has_repne_prefix() {
            once(self)?;
            return Ok(self.after_port());
        }
        let mask = address_mask(op);
        loop {
            let count = self.regs.r[RCX] & mask;
            if count == 0 {
                return Ok(self.after_port());
            }
            once(self)?;
            set_masked(&mut self.regs.r[RCX], count - 1, mask);
            let interrupted = self.is_wanted() || self.regs.flag(rflags::TF);
            if interrupted && count > 1 {
                self.regs.r[RIP] = self.regs.r[RIP].wrapping_sub(op.len as u64);
                return Ok(Flow::Branch);
            }
        }
    }
}

/// All ones in as many bits as addresses of this instruction have: the index register tells.
fn address_mask(op: &Op) -> u64 {
    let insn = op.insn();
    for operand in 0..2 {
        match insn.op_kind(operand) {
            OpKind::MemoryESDI | OpKind::MemorySegSI => return 0xffff,
            OpKind::MemoryESEDI | OpKind::MemorySegESI => return 0xffff_ffff,
            _ => {}
        }
    }
    debug_assert!(!is_memory(op, 0) && !is_memory(op, 1));
    u64::MAX
}

/// Writes a register through its 16-, 32- or 64-bit name.
fn set_masked(register: &mut u64, value: u64, mask: u64) {
    *register = match mask {
        0xffff => *register & !mask | value & mask,
        _ => value & mask,
    };
}

fn step<T: Int>(cpu: &Cpu) -> u64 {
    let bytes = T::BYTES as u64;
    if cpu.regs.flag(rflags::DF) { bytes.wrapping_neg() } else { bytes }
}

/// In 64-bit code ES is flat.
fn es(cpu: &Cpu) -> u8 {
    if cpu.mode.is_64() { crate::regs::FLAT as u8 } else { seg::ES as u8 }
}

fn input_string<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let port = cpu.regs.get::<u16>(RDX as u8);
    cpu.check_port(port, T::BYTES)?;
    let mask = address_mask(op);
    cpu.repeat(op, |cpu| {
        let offset = cpu.regs.r[RDI] & mask;
        let linear = cpu.linear(es(cpu), offset, T::BYTES, true)?;
        // The store must not fault once the device has been read.
        cpu.check_write(linear, T::BYTES)?;
        let value = cpu.read_port::<T>(port);
        cpu.write(linear, value)?;
        let next = offset.wrapping_add(step::<T>(cpu));
        set_masked(&mut cpu.regs.r[RDI], next, mask);
        Ok(())
    })
}

fn output_string<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let port = cpu.regs.get::<u16>(RDX as u8);
    cpu.check_port(port, T::BYTES)?;
    let mask = address_mask(op);
    let segment = source_segment(cpu, op);
    cpu.repeat(op, |cpu| {
        let offset = cpu.regs.r[RSI] & mask;
        let linear = cpu.linear(segment, offset, T::BYTES, false)?;
        let value = cpu.read::<T>(linear)?;
        cpu.write_port(port, value);
        let next = offset.wrapping_add(step::<T>(cpu));
        set_masked(&mut cpu.regs.r[RSI], next, mask);
        Ok(())
    })
}

/// The segment that OUTS reads: DS or the one of a prefix; in 64-bit code only FS and GS have a base.
fn source_segment(cpu: &Cpu, op: &Op) -> u8 {
    let number = crate::block::decode::segment_number(op.insn().memory_segment());
    let based = matches!(number as usize, seg::FS | seg::GS);
    if cpu.mode.is_64() && !based { crate::regs::FLAT as u8 } else { number }
}
