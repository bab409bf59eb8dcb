//! Far jumps, calls and returns (SDM vol. 2, JMP, CALL and RET; vol. 3A, §5.8).

use super::After::{self, *};
use super::descriptor::{Descriptor, Gate, is_null, rpl};
use super::segment::null_stack_segment;
use super::stack::Stack;
use super::task::Switch;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::RIP;
use iced_x86::{Code, Instruction};
use x86::segment::{Segment, access, system_type};
use x86::state::seg;
use x86::{Vector, paging::is_canonical};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    use Code::*;
    Some(match insn.code() {
        Jmp_ptr1616 | Jmp_ptr1632 | Jmp_m1616 | Jmp_m1632 | Jmp_m1664 => (jump, Ends),
        Call_ptr1616 | Call_ptr1632 | Call_m1616 | Call_m1632 | Call_m1664 => (call, Ends),
        Retfw | Retfd | Retfq | Retfw_imm16 | Retfd_imm16 | Retfq_imm16 => (far_return, Ends),
        _ => return None,
    })
}

/// Jump or call: what tells the checks of the two apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jump,
    Call,
}

fn jump(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (selector, offset, size) = target(cpu, op)?;
    cpu.far_transfer(selector, offset, size, Kind::Jump)?;
    Ok(Flow::Branch)
}

fn call(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let (selector, offset, size) = target(cpu, op)?;
    cpu.far_transfer(selector, offset, size, Kind::Call)?;
    Ok(Flow::Branch)
}

/// Selector, offset and operand size in bytes of a far branch.
fn target(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64, u8)> {
    use Code::*;
    let insn = op.insn();
    let size: u8 = match insn.code() {
        Jmp_ptr1616 | Call_ptr1616 => {
            return Ok((insn.far_branch_selector(), insn.far_branch16() as u64, 2));
        }
        Jmp_ptr1632 | Call_ptr1632 => {
            return Ok((insn.far_branch_selector(), insn.far_branch32() as u64, 4));
        }
        Jmp_m1616 | Call_m1616 => 2,
        Jmp_m1632 | Call_m1632 => 4,
        // AMD processors have no 64-bit offset here: they ignore REX.W (APM vol. 3, JMP far).
        _ if !cpu.is_intel() => 4,
        _ => 8,
    };
    let len = size as usize + 2;
    let linear = op.linear(cpu, len, false)?;
    let mut bytes = [0; 10];
    cpu.read_bytes(linear, &mut bytes[..len])?;
    let selector = u16::from_le_bytes([bytes[len - 2], bytes[len - 1]]);
    bytes[len - 2..].fill(0);
    Ok((selector, u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")), size))
}

impl Cpu {
    fn far_transfer(&mut self, selector: u16, offset: u64, size: u8, kind: Kind) -> Result<()> {
        if self.mode.is_real_like() {
            return self.far_transfer_real(selector, offset, size, kind);
        }
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let descriptor = self.descriptor(selector, Vector::GeneralProtection)?;
        let segment = descriptor.segment();
        if segment.has(access::NOT_SYSTEM) {
            return self.far_transfer_code(&descriptor, offset, size, kind);
        }
        let long = self.mode.long;
        match segment.kind() {
            system_type::CALL_GATE => self.far_transfer_gate(&descriptor, kind),
            system_type::CALL_GATE16 if !long => self.far_transfer_gate(&descriptor, kind),
            system_type::TASK_GATE if !long => {
                self.check_gate_privilege(&descriptor)?;
                let tss = Gate::decode(descriptor.raw, 0).selector;
                self.switch_task(tss, kind.switch(), None)
            }
            system_type::TSS16_AVAILABLE | system_type::TSS_AVAILABLE if !long => {
                self.check_gate_privilege(&descriptor)?;
                self.switch_task(selector, kind.switch(), None)
            }
            _ => Err(descriptor.fault(Vector::GeneralProtection)),
        }
    }

    fn far_transfer_real(&mut self, selector: u16, offset: u64, size: u8, kind: Kind) -> Result<()> {
        if offset > self.regs.seg[seg::CS].limit as u64 {
            return Err(Fault::GP0);
        }
        if kind == Kind::Call {
            let mut stack = self.current_stack();
            self.push_to(&mut stack, size, self.cs_selector() as u64)?;
            self.push_to(&mut stack, size, self.regs.r[RIP])?;
            self.commit_stack(&stack);
        }
        self.load_real_segment(seg::CS, selector);
        self.regs.r[RIP] = offset;
        self.update_mode();
        Ok(())
    }

    /// A transfer straight to a code segment, which never changes the privilege level.
    fn far_transfer_code(
        &mut self,
        descriptor: &Descriptor,
        offset: u64,
        size: u8,
        kind: Kind,
    ) -> Result<()> {
        let segment = descriptor.segment();
        let cpl = self.cpl();
        let allowed = match segment.has(access::CONFORMING) {
            true => segment.dpl() <= cpl,
            false => segment.dpl() == cpl && rpl(descriptor.selector) <= cpl,
        };
        if !segment.has(access::CODE) || !allowed {
            return Err(descriptor.fault(Vector::GeneralProtection));
        }
        self.check_code_kind(descriptor)?;
        let offset = offset & u64::MAX >> (64 - 8 * size as u32);
        self.check_target(&segment, offset)?;
        let mut stack = self.current_stack();
        if kind == Kind::Call {
            self.push_to(&mut stack, size, self.cs_selector() as u64)?;
            self.push_to(&mut stack, size, self.regs.r[RIP])?;
        }
        let segment = self.mark_accessed(descriptor)?;
        self.commit_stack(&stack);
        self.enter_code(segment, cpl, offset);
        Ok(())
    }

    /// Gates, and TSSs used like them: the privilege of caller and selector must reach the gate's, and
    /// it has to be present.
    fn check_gate_privilege(&mut self, descriptor: &Descriptor) -> Result<()> {
        let gate = descriptor.segment();
        if self.cpl().max(rpl(descriptor.selector)) > gate.dpl() {
            return Err(descriptor.fault(Vector::GeneralProtection));
        }
        if !gate.has(access::PRESENT) {
            return Err(descriptor.fault(Vector::SegmentNotPresent));
        }
        Ok(())
    }

    fn far_transfer_gate(&mut self, descriptor: &Descriptor, kind: Kind) -> Result<()> {
        let gate = self.call_gate(descriptor)?;
        self.check_gate_privilege(descriptor)?;
        if is_null(gate.selector) {
            return Err(Fault::GP0);
        }
        let code = self.descriptor(gate.selector, Vector::GeneralProtection)?;
        let segment = code.segment();
        let cpl = self.cpl();
        let fault = code.fault(Vector::GeneralProtection);
        if !segment.has(access::NOT_SYSTEM | access::CODE) || segment.dpl() > cpl {
            return Err(fault);
        }
        if self.mode.long && (!segment.has(access::LONG) || segment.has(access::DEFAULT_BIG)) {
            return Err(fault);
        }
        let conforming = segment.has(access::CONFORMING);
        if kind == Kind::Jump && !conforming && segment.dpl() != cpl {
            return Err(fault);
        }
        if !segment.has(access::PRESENT) {
            return Err(code.fault(Vector::SegmentNotPresent));
        }
        self.check_target(&segment, gate.offset)?;
        let size = match () {
            _ if self.mode.long => 8,
            _ if gate.is_16() => 2,
            _ => 4,
        };
        if kind == Kind::Call && !conforming && segment.dpl() < cpl {
            return self.call_inner(&code, &gate, size);
        }
        let mut stack = self.current_stack();
        if kind == Kind::Call {
            // A 64-bit gate makes the processor use the whole stack pointer, whatever the old mode.
            if self.mode.long {
                stack.bits = 64;
            }
            self.push_to(&mut stack, size, self.cs_selector() as u64)?;
            self.push_to(&mut stack, size, self.regs.r[RIP])?;
        }
        let segment = self.mark_accessed(&code)?;
        self.commit_stack(&stack);
        self.enter_code(segment, cpl, gate.offset);
        Ok(())
    }

    /// A call through a gate to more privilege: the stack comes from the TSS.
    fn call_inner(&mut self, code: &Descriptor, gate: &Gate, size: u8) -> Result<()> {
        let cpl = code.segment().dpl();
        let old = self.current_stack();
        let old_selector = self.regs.seg[seg::SS].selector;
        let mut stack = self.inner_stack(cpl)?;
        self.push_to(&mut stack, size, old_selector as u64)?;
        self.push_to(&mut stack, size, old.sp)?;
        if !self.mode.long {
            let mut from = old;
            from.skip(size as u64 * gate.extra as u64);
            for _ in 0..gate.extra {
                from.skip((size as u64).wrapping_neg());
                let parameter = self.pop_from(&mut from.clone(), size)?;
                self.push_to(&mut stack, size, parameter)?;
            }
        }
        self.push_to(&mut stack, size, self.cs_selector() as u64)?;
        self.push_to(&mut stack, size, self.regs.r[RIP])?;
        let segment = self.mark_accessed(code)?;
        self.commit_stack(&stack);
        self.regs.seg[seg::SS] = stack.segment;
        self.enter_code(segment, cpl, gate.offset);
        Ok(())
    }

    /// The stack that the TSS holds for privilege level `cpl`, below the present one (SDM vol. 3A,
    /// §5.8.5). Its fault is #SS with the new selector.
    pub(super) fn inner_stack(&mut self, cpl: u8) -> Result<Stack> {
        let mmu = self.mmu_of(cpl);
        if self.mode.long {
            let sp = self.tss_stack_pointer(4 + 8 * cpl as u64)?;
            // The new SS is null, with the new level as RPL.
            let segment = null_stack_segment(cpl as u16, cpl);
            return Ok(Stack { segment, sp, bits: 64, mmu, fault: Fault::SS0 });
        }
        let tr = self.sys.tr;
        let wide = tr.kind() & 8 != 0;
        let offset = if wide { 4 + 8 * cpl as u64 } else { 2 + 4 * cpl as u64 };
        let len = if wide { 6 } else { 4 };
        if offset + len - 1 > tr.limit as u64 {
            return Err(Fault::with_code(Vector::InvalidTss, tr.selector & !3));
        }
        let (sp, selector) = match wide {
            true => (
                self.read_system::<u32>(tr.base, offset)? as u64,
                self.read_system::<u16>(tr.base, offset + 4)?,
            ),
            false => (
                self.read_system::<u16>(tr.base, offset)? as u64,
                self.read_system::<u16>(tr.base, offset + 2)?,
            ),
        };
        if is_null(selector) {
            return Err(Fault::with_code(Vector::InvalidTss, 0));
        }
        let segment = self.stack_segment(selector, cpl, Vector::InvalidTss)?;
        let fault = Fault::with_code(Vector::StackFault, selector & !3);
        Ok(Stack { segment, sp, bits: Stack::bits_of(&segment), mmu, fault })
    }

    /// Reads a stack pointer from the 64-bit TSS.
    pub(super) fn tss_stack_pointer(&mut self, offset: u64) -> Result<u64> {
        let tr = self.sys.tr;
        if offset + 7 > tr.limit as u64 {
            return Err(Fault::with_code(Vector::InvalidTss, tr.selector & !3));
        }
        // In halves: the field is aligned to four bytes only.
        let low = self.read_system::<u32>(tr.base, offset)? as u64;
        let high = self.read_system::<u32>(tr.base, offset + 4)? as u64;
        Ok(high << 32 | low)
    }

    /// Presence, and in long mode that a code segment is not both 64-bit and 32-bit.
    pub(super) fn check_code_kind(&self, descriptor: &Descriptor) -> Result<()> {
        let segment = descriptor.segment();
        if self.mode.long && segment.has(access::LONG | access::DEFAULT_BIG) {
            return Err(descriptor.fault(Vector::GeneralProtection));
        }
        if !segment.has(access::PRESENT) {
            return Err(descriptor.fault(Vector::SegmentNotPresent));
        }
        Ok(())
    }

    /// Whether `offset` may be executed in a code segment: canonical or inside the limit.
    pub(super) fn check_target(&self, code: &Segment, offset: u64) -> Result<()> {
        let inside = match self.mode.long && code.has(access::LONG) {
            true => is_canonical(offset),
            false => offset <= code.limit as u64,
        };
        if inside { Ok(()) } else { Err(Fault::GP0) }
    }

    /// Loads CS and RIP after all checks; `cpl` becomes the selector's RPL. SS must be loaded already.
    pub(super) fn enter_code(&mut self, mut code: Segment, cpl: u8, rip: u64) {
        code.selector = code.selector & !3 | cpl as u16;
        self.regs.seg[seg::CS] = code;
        self.regs.r[RIP] = rip;
        self.update_mode();
    }
}

impl Kind {
    fn switch(self) -> Switch {
        match self {
            Kind::Jump => Switch::Jump,
            Kind::Call => Switch::Call,
        }
    }
}

fn far_return(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    use Code::*;
    let size = match op.insn().code() {
        Retfw | Retfw_imm16 => 2,
        Retfd | Retfd_imm16 => 4,
        _ => 8,
    };
    let release = match op.insn().op_count() {
        0 => 0,
        _ => op.insn().immediate16() as u64,
    };
    let mut stack = cpu.current_stack();
    let rip = cpu.pop_from(&mut stack, size)?;
    let selector = cpu.pop_from(&mut stack, size)? as u16;
    if cpu.mode.is_real_like() {
        if rip > cpu.regs.seg[seg::CS].limit as u64 {
            return Err(Fault::GP0);
        }
        stack.skip(release);
        cpu.commit_stack(&stack);
        cpu.load_real_segment(seg::CS, selector);
        cpu.regs.r[RIP] = rip;
        cpu.update_mode();
        return Ok(Flow::Branch);
    }
    let code = cpu.return_code(selector)?;
    cpu.check_target(&code.segment(), rip)?;
    stack.skip(release);
    let cpl = rpl(selector);
    if cpl == cpu.cpl() {
        let segment = cpu.mark_accessed(&code)?;
        cpu.commit_stack(&stack);
        cpu.enter_code(segment, cpl, rip);
        return Ok(Flow::Branch);
    }
    let sp = cpu.pop_from(&mut stack, size)?;
    let ss = cpu.pop_from(&mut stack, size)? as u16;
    let stack_segment = cpu.return_stack(ss, cpl, &code.segment())?;
    let segment = cpu.mark_accessed(&code)?;
    cpu.enter_outer(segment, cpl, rip, stack_segment, sp, release);
    Ok(Flow::Branch)
}

impl Cpu {
    /// The code segment that a far return or IRET leads to.
    pub(super) fn return_code(&mut self, selector: u16) -> Result<Descriptor> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let code = self.descriptor(selector, Vector::GeneralProtection)?;
        let segment = code.segment();
        let rpl = rpl(selector);
        let reachable = match segment.has(access::CONFORMING) {
            true => segment.dpl() <= rpl,
            false => segment.dpl() == rpl,
        };
        if rpl < self.cpl() || !segment.has(access::NOT_SYSTEM | access::CODE) || !reachable {
            return Err(code.fault(Vector::GeneralProtection));
        }
        self.check_code_kind(&code)?;
        Ok(code)
    }

    /// The stack segment that a return to `cpl` loads. A null one is allowed to 64-bit code below 3.
    pub(super) fn return_stack(&mut self, selector: u16, cpl: u8, code: &Segment) -> Result<Segment> {
        if is_null(selector) {
            let to_64 = self.mode.long && code.has(access::LONG);
            return match to_64 && cpl < 3 && rpl(selector) == cpl {
                true => Ok(null_stack_segment(selector, cpl)),
                false => Err(Fault::GP0),
            };
        }
        self.stack_segment(selector, cpl, Vector::GeneralProtection)
    }

    /// Completes a return to less privilege.
    pub(super) fn enter_outer(
        &mut self,
        code: Segment,
        cpl: u8,
        rip: u64,
        stack_segment: Segment,
        sp: u64,
        release: u64,
    ) {
        let to_64 = self.mode.long && code.has(access::LONG);
        let bits = if to_64 { 64 } else { Stack::bits_of(&stack_segment) };
        let mmu = self.mode.data;
        let mut stack = Stack { segment: stack_segment, sp, bits, mmu, fault: Fault::SS0 };
        stack.skip(release);
        self.commit_stack(&stack);
        self.regs.seg[seg::SS] = stack_segment;
        self.enter_code(code, cpl, rip);
        self.drop_inner_segments(cpl);
    }
}
