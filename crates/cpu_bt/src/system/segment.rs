//! Loading and storing segment registers (SDM vol. 2, MOV, POP, LDS…; vol. 3A, §5.5 and §5.6).

use super::After::{self, *};
use super::descriptor::{is_null, rpl};
use super::operand::register;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use iced_x86::{Code, Instruction, Register};
use x86::segment::{Segment, access};
use x86::state::seg;
use x86::{Vector, paging::is_canonical};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    use Code::*;
    Some(match insn.code() {
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => (mov_from_segment, Continues),
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => (mov_to_segment, ends_for(insn)),
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => (push::<u16>, Continues),
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => (push::<u32>, Continues),
        Pushq_FS | Pushq_GS => (push::<u64>, Continues),
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => (pop::<u16>, ends_for(insn)),
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => (pop::<u32>, ends_for(insn)),
        Popq_FS | Popq_GS => (pop::<u64>, Continues),
        Les_r16_m1616 | Lds_r16_m1616 | Lss_r16_m1616 | Lfs_r16_m1616 | Lgs_r16_m1616 => {
            (load_far_pointer::<u16>, Ends)
        }
        Les_r32_m1632 | Lds_r32_m1632 | Lss_r32_m1632 | Lfs_r32_m1632 | Lgs_r32_m1632 => {
            (load_far_pointer::<u32>, Ends)
        }
        Lss_r64_m1664 | Lfs_r64_m1664 | Lgs_r64_m1664 => (load_far_pointer::<u64>, Ends),
        Rdfsbase_r32 | Rdgsbase_r32 => (read_base::<u32>, Continues),
        Rdfsbase_r64 | Rdgsbase_r64 => (read_base::<u64>, Continues),
        Wrfsbase_r32 | Wrgsbase_r32 => (write_base::<u32>, Continues),
        Wrfsbase_r64 | Wrgsbase_r64 => (write_base::<u64>, Continues),
        Swapgs => (swapgs, Continues),
        _ => return None,
    })
}

/// Loading SS changes the stack's size and holds interrupts off; the others change nothing that a block
/// depends on.
fn ends_for(insn: &Instruction) -> After {
    if insn.op0_register() == Register::SS { Ends } else { Continues }
}

/// Index of the segment register that operand `operand` names.
fn segment_index(op: &Op, operand: u32) -> usize {
    op.insn().op_register(operand).number()
}

fn mov_from_segment(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let selector = cpu.regs.seg[segment_index(op, 1)].selector;
    cpu.store_word(op, selector as u64)?;
    Ok(Flow::Next)
}

fn mov_to_segment(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let index = segment_index(op, 0);
    if index == seg::CS {
        return Err(Fault::UNDEFINED);
    }
    let selector = cpu.operand::<u16>(op, 1)?;
    cpu.load_segment(index, selector)?;
    if index == seg::SS {
        cpu.shadow = true;
    }
    Ok(Flow::Next)
}

fn push<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let selector = cpu.regs.seg[segment_index(op, 0)].selector;
    let mut stack = cpu.current_stack();
    match T::BYTES {
        // Intel's processors write only the low half of the doubleword (SDM vol. 2B, PUSH).
        4 if cpu.is_intel() => {
            stack.skip(4u64.wrapping_neg());
            let mut low = stack;
            low.skip(2);
            cpu.push_to(&mut low, 2, selector as u64)?;
        }
        size => cpu.push_to(&mut stack, size as u8, selector as u64)?,
    }
    cpu.commit_stack(&stack);
    Ok(Flow::Next)
}

fn pop<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let index = segment_index(op, 0);
    let mut stack = cpu.current_stack();
    // Two bytes are read, the stack pointer moves by the operand size.
    let mut low = stack;
    let selector = cpu.pop_from(&mut low, 2)? as u16;
    stack.skip(T::BYTES as u64);
    cpu.load_segment(index, selector)?;
    // The pointer moves with the size that the old stack segment had.
    cpu.commit_stack(&stack);
    if index == seg::SS {
        cpu.shadow = true;
    }
    Ok(Flow::Next)
}

fn load_far_pointer<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    // AMD processors have no 64-bit form: they ignore REX.W (APM vol. 3, LFS).
    if T::BYTES == 8 && !cpu.is_intel() {
        return load_far_pointer::<u32>(cpu, op);
    }
    let index = match op.insn().code() {
        Code::Les_r16_m1616 | Code::Les_r32_m1632 => seg::ES,
        Code::Lds_r16_m1616 | Code::Lds_r32_m1632 => seg::DS,
        Code::Lss_r16_m1616 | Code::Lss_r32_m1632 | Code::Lss_r64_m1664 => seg::SS,
        Code::Lfs_r16_m1616 | Code::Lfs_r32_m1632 | Code::Lfs_r64_m1664 => seg::FS,
        _ => seg::GS,
    };
    let linear = op.linear(cpu, T::BYTES + 2, false)?;
    let mut bytes = [0; 10];
    cpu.read_bytes(linear, &mut bytes[..T::BYTES + 2])?;
    let selector = u16::from_le_bytes([bytes[T::BYTES], bytes[T::BYTES + 1]]);
    let offset = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    cpu.load_segment(index, selector)?;
    cpu.regs.set(register(op, 0), T::from_u64(offset));
    Ok(Flow::Next)
}

fn base_index(op: &Op) -> usize {
    match op.insn().code() {
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 | Code::Wrfsbase_r32 | Code::Wrfsbase_r64 => seg::FS,
        _ => seg::GS,
    }
}

fn read_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_cr4(x86::reg::cr4::FSGSBASE)?;
    let base = cpu.regs.seg[base_index(op)].base;
    cpu.regs.set(register(op, 0), T::from_u64(base));
    Ok(Flow::Next)
}

fn write_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_cr4(x86::reg::cr4::FSGSBASE)?;
    let base = cpu.regs.get::<T>(register(op, 0)).to_u64();
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    cpu.regs.seg[base_index(op)].base = base;
    Ok(Flow::Next)
}

fn swapgs(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.regs.seg[seg::GS].base, &mut cpu.sys.kernel_gs_base);
    Ok(Flow::Next)
}

impl Cpu {
    /// #UD unless a bit of CR4 is set.
    pub(super) fn require_cr4(&self, bit: u64) -> Result<()> {
        if self.sys.cr4 & bit != 0 { Ok(()) } else { Err(Fault::UNDEFINED) }
    }

    /// Loads ES, SS, DS, FS or GS with all checks of the mode; nothing changes when it fails.
    pub(super) fn load_segment(&mut self, index: usize, selector: u16) -> Result<()> {
        if self.mode.is_real_like() {
            self.load_real_segment(index, selector);
        } else if index == seg::SS {
            self.regs.seg[seg::SS] = self.checked_stack_segment(selector)?;
        } else {
            self.regs.seg[index] = self.data_segment(selector, Vector::GeneralProtection)?;
        }
        if index == seg::SS {
            self.update_mode();
        }
        Ok(())
    }

    /// Loads a segment register with a paragraph number. In real-address mode limit and rights stay what
    /// they were (which is how "unreal" mode works); in virtual-8086 mode they are fixed.
    pub(super) fn load_real_segment(&mut self, index: usize, selector: u16) {
        let register = &mut self.regs.seg[index];
        if self.mode.v86 {
            *register = virtual_8086_segment(selector);
        } else if register.is_unusable() {
            *register = Segment::real_mode(selector);
        } else {
            register.selector = selector;
            register.base = (selector as u64) << 4;
        }
    }

    /// The segment for DS, ES, FS or GS. What is wrong with it raises `vector`, an absent one #NP.
    pub(super) fn data_segment(&mut self, selector: u16, vector: Vector) -> Result<Segment> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let descriptor = self.descriptor(selector, vector)?;
        let segment = descriptor.segment();
        let code = segment.has(access::CODE);
        if !segment.has(access::NOT_SYSTEM) || (code && !segment.has(access::READABLE)) {
            return Err(descriptor.fault(vector));
        }
        let conforming = code && segment.has(access::CONFORMING);
        if !conforming && self.cpl().max(rpl(selector)) > segment.dpl() {
            return Err(descriptor.fault(vector));
        }
        if !segment.has(access::PRESENT) {
            return Err(descriptor.fault(Vector::SegmentNotPresent));
        }
        self.mark_accessed(&descriptor)
    }

    /// The segment for SS at the present privilege.
    fn checked_stack_segment(&mut self, selector: u16) -> Result<Segment> {
        let cpl = self.cpl();
        if is_null(selector) {
            // Only 64-bit code below privilege level 3 may (SDM vol. 3A, §3.4.5).
            if self.mode.is_64() && cpl < 3 && rpl(selector) == cpl {
                return Ok(null_stack_segment(selector, cpl));
            }
            return Err(Fault::GP0);
        }
        self.stack_segment(selector, cpl, Vector::GeneralProtection)
    }

    /// The segment for SS at privilege `cpl` through a selector that is not null. What is wrong with it
    /// raises `vector` (#GP, or #TS where the selector is from a TSS), an absent one #SS.
    pub(super) fn stack_segment(&mut self, selector: u16, cpl: u8, vector: Vector) -> Result<Segment> {
        let descriptor = self.descriptor(selector, vector)?;
        let segment = descriptor.segment();
        let writable = segment.has(access::NOT_SYSTEM | access::WRITABLE) && !segment.has(access::CODE);
        if rpl(selector) != cpl || !writable || segment.dpl() != cpl {
            return Err(descriptor.fault(vector));
        }
        if !segment.has(access::PRESENT) {
            return Err(descriptor.fault(Vector::StackFault));
        }
        self.mark_accessed(&descriptor)
    }

    /// After a return to less privilege: data segments that the new level may not use become null
    /// (SDM vol. 2, IRET and RET).
    pub(super) fn drop_inner_segments(&mut self, cpl: u8) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &mut self.regs.seg[index];
            let conforming = segment.has(access::CODE | access::CONFORMING);
            if !segment.is_unusable() && segment.dpl() < cpl && !conforming {
                let base = segment.base;
                *segment = Segment::default();
                // In long mode the bases of FS and GS are registers of their own.
                if self.mode.long {
                    segment.base = base;
                }
            }
        }
    }
}

/// SS as a null selector leaves it in long mode: unusable, but with the privilege level.
pub(super) fn null_stack_segment(selector: u16, cpl: u8) -> Segment {
    Segment { selector, access: (cpl as u16) << 5, ..Segment::default() }
}

/// A segment as virtual-8086 mode has it.
pub(super) fn virtual_8086_segment(selector: u16) -> Segment {
    let segment = Segment::real_mode(selector);
    Segment { access: segment.access | 3 << 5, ..segment }
}
