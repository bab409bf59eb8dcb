//! Descriptor-table registers and instructions that examine descriptors: LGDT and kin, LLDT, LTR, LAR,
//! LSL, VERR, VERW, ARPL (SDM vol. 2; vol. 3A, §5.10).

use super::After::{self, *};
use super::descriptor::{is_null, rpl};
use super::operand::register;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use iced_x86::{Code, Instruction, Mnemonic};
use x86::reg::{cr4, rflags};
use x86::segment::{Segment, access, system_type};
use x86::state::TableRegister;
use x86::{Vector, paging::is_canonical};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    use Mnemonic::*;
    Some(match insn.mnemonic() {
        Sgdt | Sidt => (store_table, Continues),
        Lgdt | Lidt => (load_table, Ends),
        Sldt => (sldt, Continues),
        Str => (str, Continues),
        Lldt => (lldt, Continues),
        Ltr => (ltr, Continues),
        Verr | Verw => (verify, Continues),
        Arpl => (arpl, Continues),
        Lar | Lsl => match insn.code() {
            Code::Lar_r16_rm16 => (lar::<u16>, Continues),
            Code::Lar_r32_r32m16 => (lar::<u32>, Continues),
            Code::Lar_r64_r64m16 => (lar::<u64>, Continues),
            Code::Lsl_r16_rm16 => (lsl::<u16>, Continues),
            Code::Lsl_r32_r32m16 => (lsl::<u32>, Continues),
            _ => (lsl::<u64>, Continues),
        },
        _ => return None,
    })
}

impl Cpu {
    /// #GP(0) for instructions that user-mode instruction prevention keeps from user code.
    pub(super) fn require_no_umip(&self) -> Result<()> {
        let prevented = self.sys.cr4 & cr4::UMIP != 0 && self.cpl() > 0;
        if prevented { Err(Fault::GP0) } else { Ok(()) }
    }
}

fn store_table(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_no_umip()?;
    let table = match op.insn().mnemonic() {
        Mnemonic::Sgdt => cpu.sys.gdtr,
        _ => cpu.sys.idtr,
    };
    // All 32 bits of the base are stored even with a 16-bit operand, as processors since the 80386 do.
    let len = if cpu.mode.is_64() { 10 } else { 6 };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let linear = op.linear(cpu, len, true)?;
    cpu.write_bytes(linear, &bytes[..len])?;
    Ok(Flow::Next)
}

fn load_table(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    let len = if cpu.mode.is_64() { 10 } else { 6 };
    let linear = op.linear(cpu, len, false)?;
    let mut bytes = [0; 10];
    cpu.read_bytes(linear, &mut bytes[..len])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = u64::from_le_bytes(bytes[2..].try_into().expect("eight bytes"));
    if matches!(op.insn().code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if !is_canonical(base) {
        return Err(Fault::GP0);
    }
    let table = TableRegister { base, limit };
    match op.insn().mnemonic() {
        Mnemonic::Lgdt => cpu.sys.gdtr = table,
        _ => cpu.sys.idtr = table,
    }
    Ok(Flow::Next)
}

fn sldt(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    cpu.require_no_umip()?;
    cpu.store_word(op, cpu.sys.ldtr.selector as u64)?;
    Ok(Flow::Next)
}

fn str(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    cpu.require_no_umip()?;
    cpu.store_word(op, cpu.sys.tr.selector as u64)?;
    Ok(Flow::Next)
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = cpu.operand::<u16>(op, 0)?;
    cpu.sys.ldtr = cpu.checked_ldt(selector, Vector::GeneralProtection)?;
    Ok(Flow::Next)
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = cpu.operand::<u16>(op, 0)?;
    if is_null(selector) {
        return Err(Fault::GP0);
    }
    if selector & 4 != 0 {
        return Err(Fault::gp(selector));
    }
    let descriptor = cpu.descriptor(selector, Vector::GeneralProtection)?;
    let kind = descriptor.segment().access & (access::NOT_SYSTEM | 15);
    let available =
        kind == system_type::TSS_AVAILABLE || kind == system_type::TSS16_AVAILABLE && !cpu.mode.long;
    if !available {
        return Err(Fault::gp(selector));
    }
    if !descriptor.segment().has(access::PRESENT) {
        return Err(descriptor.fault(Vector::SegmentNotPresent));
    }
    let mut segment = cpu.system_segment(&descriptor, Vector::GeneralProtection)?;
    cpu.mark_busy(&descriptor, true)?;
    segment.access |= system_type::TSS_BUSY ^ system_type::TSS_AVAILABLE;
    cpu.sys.tr = segment;
    Ok(Flow::Next)
}

impl Cpu {
    /// The LDT for a selector. What is wrong raises `vector`, an absent one #NP (or `vector` too where
    /// that is #TS).
    pub(super) fn checked_ldt(&mut self, selector: u16, vector: Vector) -> Result<Segment> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        if selector & 4 != 0 {
            return Err(Fault::with_code(vector, selector & !3));
        }
        let descriptor = self.descriptor(selector, vector)?;
        let segment = descriptor.segment();
        if segment.access & (access::NOT_SYSTEM | 15) != system_type::LDT {
            return Err(descriptor.fault(vector));
        }
        if !segment.has(access::PRESENT) {
            let absent = vector == Vector::GeneralProtection;
            return Err(descriptor.fault(if absent { Vector::SegmentNotPresent } else { vector }));
        }
        self.system_segment(&descriptor, vector)
    }

    /// The segment of a selector as LAR, LSL, VERR and VERW may see it: `None` where the selector is
    /// null, outside its table, or not visible at the present privilege and the selector's.
    fn visible_segment(&mut self, selector: u16) -> Result<Option<(Segment, u64)>> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.find_descriptor(selector)? else { return Ok(None) };
        let segment = descriptor.segment();
        let conforming = segment.has(access::NOT_SYSTEM | access::CODE | access::CONFORMING);
        let visible = conforming || self.cpl().max(rpl(selector)) <= segment.dpl();
        Ok(visible.then_some((segment, descriptor.raw)))
    }

    fn set_zf(&mut self, set: bool) {
        self.regs.rflags = self.regs.rflags & !rflags::ZF | if set { rflags::ZF } else { 0 };
    }
}

fn lar<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    let selector = cpu.operand::<u16>(op, 1)?;
    let found = cpu.visible_segment(selector)?.filter(|(segment, _)| {
        // SDM vol. 2A, LAR, table 3-53; call gates and 16-bit kinds are no types of long mode.
        let kind = segment.kind();
        segment.has(access::NOT_SYSTEM)
            || match cpu.mode.long {
                true => matches!(kind, 2 | 9 | 11 | 12),
                false => matches!(kind, 1 | 2 | 3 | 4 | 5 | 9 | 11 | 12),
            }
    });
    if let Some((_, raw)) = found {
        let rights = raw >> 32 & 0x00f0_ff00;
        cpu.regs.set(register(op, 0), T::from_u64(rights));
    }
    cpu.set_zf(found.is_some());
    Ok(Flow::Next)
}

fn lsl<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    let selector = cpu.operand::<u16>(op, 1)?;
    let found = cpu.visible_segment(selector)?.filter(|(segment, _)| {
        let kind = segment.kind();
        segment.has(access::NOT_SYSTEM)
            || match cpu.mode.long {
                true => matches!(kind, 2 | 9 | 11),
                false => matches!(kind, 1 | 2 | 3 | 9 | 11),
            }
    });
    if let Some((segment, _)) = found {
        cpu.regs.set(register(op, 0), T::from_u64(segment.limit as u64));
    }
    cpu.set_zf(found.is_some());
    Ok(Flow::Next)
}

fn verify(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    let selector = cpu.operand::<u16>(op, 0)?;
    let write = op.insn().mnemonic() == Mnemonic::Verw;
    let allowed = cpu.visible_segment(selector)?.is_some_and(|(segment, _)| {
        let code = segment.has(access::CODE);
        segment.has(access::NOT_SYSTEM)
            && match write {
                true => !code && segment.has(access::WRITABLE),
                false => !code || segment.has(access::READABLE),
            }
    });
    cpu.set_zf(allowed);
    Ok(Flow::Next)
}

fn arpl(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    cpu.require_protected()?;
    let source: u16 = cpu.regs.get(register(op, 1));
    let adjust = |old: u16| (old & !3 | (old & 3).max(source & 3), old & 3 < source & 3);
    if super::operand::is_memory(op, 0) {
        let linear = op.linear(cpu, 2, true)?;
        let old = cpu.read::<u16>(linear)?;
        let (new, changed) = adjust(old);
        // Written back in any case, as the processor's read-modify-write cycle does.
        cpu.write(linear, new)?;
        cpu.set_zf(changed);
    } else {
        let number = register(op, 0);
        let (new, changed) = adjust(cpu.regs.get(number));
        cpu.regs.set::<u16>(number, new);
        cpu.set_zf(changed);
    }
    Ok(Flow::Next)
}
