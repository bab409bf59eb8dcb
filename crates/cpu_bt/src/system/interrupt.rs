//! Exceptions and interrupts: from the event to the first instruction of its handler (SDM vol. 3A,
//! chapter 6).

use super::After::{self, *};
use super::descriptor::{Descriptor, Gate, is_null};
use super::segment::virtual_8086_segment;
use super::stack::Stack;
use super::task::Switch;
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::regs::{RIP, RSP};
use ::cpu::VmExit;
use iced_x86::{Code, Instruction, Mnemonic};
use x86::Vector;
use x86::reg::{cr4, dr6, dr7, rflags};
use x86::segment::{Segment, access, system_type};
use x86::state::seg;

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    Some(match insn.mnemonic() {
        Mnemonic::Int => (int, Ends),
        Mnemonic::Int3 => (int3, Ends),
        Mnemonic::Int1 => (int1, Ends),
        Mnemonic::Into => (into, Ends),
        Mnemonic::Bound if insn.code() == Code::Bound_r16_m1616 => (bound16, Continues),
        Mnemonic::Bound => (bound32, Continues),
        _ => return None,
    })
}

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// An interrupt or NMI.
    External,
    /// The processor.
    Exception,
    /// INT n, INT3 or INTO: the gate's privilege is checked.
    Software,
    /// INT n in virtual-8086 mode, subject to its redirection too.
    SoftwareN,
}

/// Something to deliver.
#[derive(Clone, Copy, Debug)]
struct Event {
    vector: u8,
    code: Option<u16>,
    source: Source,
}

impl Event {
    fn exception(fault: Fault) -> Event {
        Event { vector: fault.vector(), code: fault.code(), source: Source::Exception }
    }

    /// The error code's EXT bit, for faults while this event is delivered (SDM vol. 3A, §6.13).
    fn ext(&self) -> u16 {
        matches!(self.source, Source::External | Source::Exception) as u16
    }

    /// A fault that refers to this event's entry of the IDT.
    fn gate_fault(&self, vector: Vector) -> Fault {
        Fault::with_code(vector, (self.vector as u16) << 3 | 2)
    }

    /// Whether the pushed flags get RF set, so that the instruction at the return address does not hit
    /// its breakpoint again: faults, but not traps, aborts and interrupts (SDM vol. 3B, §18.3.1.1).
    fn sets_rf(&self) -> bool {
        const DEBUG: u8 = Vector::Debug as u8;
        const ABORTS: [u8; 2] = [Vector::DoubleFault as u8, Vector::MachineCheck as u8];
        self.source == Source::Exception && self.vector != DEBUG && !ABORTS.contains(&self.vector)
    }

    fn describe(&self) -> String {
        match (self.source, self.code) {
            (Source::External, _) => format!("interrupt {:#x}", self.vector),
            (Source::Software | Source::SoftwareN, _) => format!("software interrupt {:#x}", self.vector),
            (_, Some(code)) => format!("exception {} (error code {code:#x})", self.vector),
            (_, None) => format!("exception {}", self.vector),
        }
    }
}

/// What comes of an exception during the delivery of an event (SDM vol. 3A, table 6-5).
#[derive(Debug, PartialEq, Eq)]
enum Combination {
    Serial,
    DoubleFault,
    Shutdown,
}

fn combine(first: &Event, second: u8) -> Combination {
    const PAGE_FAULT: u8 = Vector::PageFault as u8;
    // #DE, #TS, #NP, #SS, #GP, #CP.
    let contributory = |vector: u8| matches!(vector, 0 | 10 | 11 | 12 | 13 | 21);
    if first.source != Source::Exception {
        return Combination::Serial;
    }
    match (first.vector, second) {
        (8, _) => Combination::Shutdown,
        (PAGE_FAULT, PAGE_FAULT) => Combination::DoubleFault,
        (PAGE_FAULT, second) if contributory(second) => Combination::DoubleFault,
        (first, second) if contributory(first) && contributory(second) => Combination::DoubleFault,
        _ => Combination::Serial,
    }
}

impl Cpu {
    /// Raises the exception that an instruction (or block lookup) ended with: delivers it through the
    /// IDT, turning it into double faults and shutdown as the manual says. `Fault::LEAVE` does nothing.
    #[cold]
    pub(crate) fn raise(&mut self, fault: Fault) {
        if !fault.is_leave() {
            self.deliver_all(Event::exception(fault));
        }
    }

    /// Delivers an external interrupt.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) {
        self.halted = false;
        self.deliver_all(Event { vector, code: None, source: Source::External });
    }

    /// Delivers an NMI; further ones are blocked until IRET.
    pub(crate) fn deliver_nmi(&mut self) {
        self.halted = false;
        self.nmi_blocked = true;
        self.deliver_all(Event { vector: Vector::Nmi as u8, code: None, source: Source::External });
    }

    /// #DB after an instruction executed with RFLAGS.TF set.
    pub(crate) fn single_step_trap(&mut self) {
        // Loading SS holds debug traps off until after the next instruction, as it does interrupts.
        if !self.shadow {
            self.sys.dr6 |= dr6::BS;
            self.raise(Fault::new(Vector::Debug));
        }
    }

    /// Delivers an event and whatever exceptions its delivery raises.
    fn deliver_all(&mut self, mut event: Event) {
        let mut history: Vec<String> = Vec::new();
        loop {
            if event.source == Source::Exception {
                self.vm.counters.exceptions.add();
                if event.vector == Vector::PageFault as u8 {
                    self.sys.cr2 = self.fault_address;
                }
            }
            let Err(fault) = self.deliver(&event) else { return };
            if fault.is_leave() {
                return;
            }
            history.push(event.describe());
            let second = event.nested(fault);
            event = match combine(&event, fault.vector()) {
                Combination::Serial => second,
                Combination::DoubleFault => {
                    if fault.vector() == Vector::PageFault as u8 {
                        self.sys.cr2 = self.fault_address;
                    }
                    history.push(second.describe());
                    Event::exception(Fault::with_code(Vector::DoubleFault, 0))
                }
                Combination::Shutdown => {
                    history.push(second.describe());
                    return self.shut_down(&history);
                }
            };
            // Benign exceptions can follow each other for ever; a processor would hang with them.
            if history.len() > 16 {
                return self.shut_down(&history);
            }
        }
    }

    fn shut_down(&mut self, history: &[String]) {
        let text = format!(
            "vCPU {}: triple fault at {:#x}:{:#x}: {}",
            self.id,
            self.cs_selector(),
            self.regs.r[RIP],
            history.join(", then ")
        );
        self.exit = Some(VmExit::Shutdown(text));
    }

    /// Delivers one event; on a fault nothing has changed but memory below the stack pointer.
    fn deliver(&mut self, event: &Event) -> Result<()> {
        let was_debug = event.vector == Vector::Debug as u8 && event.source == Source::Exception;
        if !self.mode.protected {
            self.deliver_real(event.vector, self.sys.idtr.base, self.sys.idtr.limit as u64)?;
        } else if self.mode.v86 && event.source == Source::SoftwareN && self.redirects(event.vector)? {
            self.deliver_virtual_8086(event.vector)?;
        } else if self.mode.long {
            self.deliver_long(event)?;
        } else {
            self.deliver_protected(event)?;
        }
        self.shadow = false;
        if was_debug {
            // The processor clears GD on entry to the handler, so that it may use the registers.
            self.sys.dr7 &= !dr7::GD;
        }
        Ok(())
    }

    /// Through the interrupt vector table of real-address mode (SDM vol. 3B, §21.1.4).
    fn deliver_real(&mut self, vector: u8, base: u64, limit: u64) -> Result<()> {
        let offset = vector as u64 * 4;
        if offset + 3 > limit {
            return Err(Fault::GP0);
        }
        let ip = self.read_system::<u16>(base, offset)?;
        let cs = self.read_system::<u16>(base, offset + 2)?;
        let mut stack = self.current_stack();
        self.push_to(&mut stack, 2, self.regs.rflags)?;
        self.push_to(&mut stack, 2, self.cs_selector() as u64)?;
        self.push_to(&mut stack, 2, self.regs.r[RIP])?;
        self.commit_stack(&stack);
        self.regs.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.load_real_segment(seg::CS, cs);
        self.regs.r[RIP] = ip as u64;
        self.update_mode();
        Ok(())
    }

    /// Whether INT n in virtual-8086 mode goes to the program's own handler: by the redirection bitmap
    /// of the TSS, with the virtual-mode extensions (SDM vol. 3B, §21.3.3, table 21-2). Without them it
    /// needs IOPL 3.
    fn redirects(&mut self, vector: u8) -> Result<bool> {
        let iopl3 = self.regs.flag(rflags::IOPL);
        let tr = self.sys.tr;
        if self.sys.cr4 & cr4::VME != 0 && tr.kind() & 8 != 0 && tr.limit >= 0x67 {
            // The bitmap is the 32 bytes before the I/O permission map.
            let map = self.read_system::<u16>(tr.base, 0x66)? as u64;
            let at = (map + vector as u64 / 8).wrapping_sub(32);
            if at > tr.limit as u64 {
                return Err(Fault::GP0);
            }
            if self.read_system::<u8>(tr.base, at)? >> (vector % 8) & 1 == 0 {
                return Ok(true);
            }
        }
        if iopl3 { Ok(false) } else { Err(Fault::GP0) }
    }

    /// Through the program's own vector table at linear address 0, inside virtual-8086 mode.
    fn deliver_virtual_8086(&mut self, vector: u8) -> Result<()> {
        let ip = self.read::<u16>(vector as u64 * 4)?;
        let cs = self.read::<u16>(vector as u64 * 4 + 2)?;
        let iopl3 = self.regs.flag(rflags::IOPL);
        let mut flags = self.regs.rflags;
        if !iopl3 {
            // The program sees VIF in place of IF, and IOPL 3.
            let interrupts = if flags & rflags::VIF != 0 { rflags::IF } else { 0 };
            flags = flags & !rflags::IF | interrupts | rflags::IOPL;
        }
        let mut stack = self.current_stack();
        self.push_to(&mut stack, 2, flags)?;
        self.push_to(&mut stack, 2, self.cs_selector() as u64)?;
        self.push_to(&mut stack, 2, self.regs.r[RIP])?;
        self.commit_stack(&stack);
        self.regs.rflags &= !(rflags::TF | rflags::RF | if iopl3 { rflags::IF } else { rflags::VIF });
        self.regs.seg[seg::CS] = virtual_8086_segment(cs);
        self.regs.r[RIP] = ip as u64;
        self.update_mode();
        Ok(())
    }

    /// Reads and checks the event's entry of the IDT.
    fn gate(&mut self, event: &Event) -> Result<Gate> {
        let fault = event.gate_fault(Vector::GeneralProtection);
        let len = if self.mode.long { 16 } else { 8 };
        let offset = event.vector as u64 * len;
        let idtr = self.sys.idtr;
        if offset + len - 1 > idtr.limit as u64 {
            return Err(fault);
        }
        let raw = self.read_system::<u64>(idtr.base, offset)?;
        let high = if self.mode.long { self.read_system::<u64>(idtr.base, offset + 8)? } else { 0 };
        let mut gate = Gate::decode(raw, high);
        let known = match gate.kind {
            system_type::INTERRUPT_GATE | system_type::TRAP_GATE => true,
            system_type::TASK_GATE | system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16 => {
                !self.mode.long
            }
            _ => false,
        };
        let software = matches!(event.source, Source::Software | Source::SoftwareN);
        if !known || (software && gate.dpl < self.cpl()) {
            return Err(fault);
        }
        if !gate.present {
            return Err(event.gate_fault(Vector::SegmentNotPresent));
        }
        if gate.is_16() {
            gate.offset &= 0xffff;
        }
        Ok(gate)
    }

    /// The code segment that a gate leads to.
    fn gate_code(&mut self, gate: &Gate) -> Result<Descriptor> {
        if is_null(gate.selector) {
            return Err(Fault::GP0);
        }
        let code = self.descriptor(gate.selector, Vector::GeneralProtection)?;
        let segment = code.segment();
        let fault = code.fault(Vector::GeneralProtection);
        if !segment.has(access::NOT_SYSTEM | access::CODE) || segment.dpl() > self.cpl() {
            return Err(fault);
        }
        if self.mode.long && (!segment.has(access::LONG) || segment.has(access::DEFAULT_BIG)) {
            return Err(fault);
        }
        // From virtual-8086 mode only to privilege level 0.
        if self.mode.v86 && (segment.dpl() != 0 || segment.has(access::CONFORMING)) {
            return Err(fault);
        }
        if !segment.has(access::PRESENT) {
            return Err(code.fault(Vector::SegmentNotPresent));
        }
        Ok(code)
    }

    /// The flags to push.
    fn pushed_flags(&self, event: &Event) -> u64 {
        self.regs.rflags | if event.sets_rf() { rflags::RF } else { 0 }
    }

    /// Flags on entry to a handler.
    fn clear_flags(&mut self, gate: &Gate) {
        self.regs.rflags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
        if gate.kind & 1 == 0 {
            self.regs.rflags &= !rflags::IF;
        }
    }

    /// Through a 16-byte gate of long mode (SDM vol. 3A, §6.14).
    fn deliver_long(&mut self, event: &Event) -> Result<()> {
        let gate = self.gate(event)?;
        let code = self.gate_code(&gate)?;
        let segment = code.segment();
        let inner = !segment.has(access::CONFORMING) && segment.dpl() < self.cpl();
        let cpl = if inner { segment.dpl() } else { self.cpl() };
        let ist = (gate.extra & 7) as u64;
        let mut stack = match inner {
            true if ist == 0 => self.inner_stack(cpl)?,
            _ => {
                let segment = match inner {
                    true => super::segment::null_stack_segment(cpl as u16, cpl),
                    false => self.regs.seg[seg::SS],
                };
                let sp = match ist {
                    0 => self.regs.r[RSP],
                    _ => self.tss_stack_pointer(0x1c + 8 * ist)?,
                };
                Stack { segment, sp, bits: 64, mmu: self.mmu_of(cpl), fault: Fault::SS0 }
            }
        };
        self.check_target(&segment, gate.offset)?;
        stack.sp &= !15;
        self.push_to(&mut stack, 8, self.regs.seg[seg::SS].selector as u64)?;
        self.push_to(&mut stack, 8, self.regs.r[RSP])?;
        self.push_to(&mut stack, 8, self.pushed_flags(event))?;
        self.push_to(&mut stack, 8, self.cs_selector() as u64)?;
        self.push_to(&mut stack, 8, self.regs.r[RIP])?;
        if let Some(code) = event.code {
            self.push_to(&mut stack, 8, code as u64)?;
        }
        let segment = self.mark_accessed(&code)?;
        self.clear_flags(&gate);
        self.commit_stack(&stack);
        self.regs.seg[seg::SS] = stack.segment;
        self.enter_code(segment, cpl, gate.offset);
        Ok(())
    }

    /// Through an 8-byte gate, outside long mode (SDM vol. 3A, §6.12).
    fn deliver_protected(&mut self, event: &Event) -> Result<()> {
        let gate = self.gate(event)?;
        if gate.kind == system_type::TASK_GATE {
            return self.switch_task(gate.selector, Switch::Interrupt, event.code);
        }
        let code = self.gate_code(&gate)?;
        let segment = code.segment();
        let inner = !segment.has(access::CONFORMING) && segment.dpl() < self.cpl();
        let cpl = if inner { segment.dpl() } else { self.cpl() };
        let size = if gate.is_16() { 2 } else { 4 };
        self.check_target(&segment, gate.offset)?;
        let mut stack = if inner { self.inner_stack(cpl)? } else { self.current_stack() };
        let from_v86 = self.mode.v86;
        if from_v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.push_to(&mut stack, size, self.regs.seg[index].selector as u64)?;
            }
        }
        if inner {
            self.push_to(&mut stack, size, self.regs.seg[seg::SS].selector as u64)?;
            self.push_to(&mut stack, size, self.regs.r[RSP])?;
        }
        self.push_to(&mut stack, size, self.pushed_flags(event))?;
        self.push_to(&mut stack, size, self.cs_selector() as u64)?;
        self.push_to(&mut stack, size, self.regs.r[RIP])?;
        if let Some(code) = event.code {
            self.push_to(&mut stack, size, code as u64)?;
        }
        let segment = self.mark_accessed(&code)?;
        self.clear_flags(&gate);
        if from_v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.regs.seg[index] = Segment::default();
            }
        }
        self.commit_stack(&stack);
        self.regs.seg[seg::SS] = stack.segment;
        self.enter_code(segment, cpl, gate.offset);
        Ok(())
    }

    /// Executes INT n, INT3 or INTO: the return address is that of the next instruction.
    fn software_interrupt(&mut self, vector: u8, source: Source) -> Result<Flow> {
        let trap = self.regs.flag(rflags::TF);
        self.deliver(&Event { vector, code: None, source })?;
        self.finish_without_trap(trap)
    }

    /// Ends an instruction that has entered another context: when it was single-stepped the trap must
    /// not come after it, so it counts as having left the guest.
    pub(super) fn finish_without_trap(&self, trap: bool) -> Result<Flow> {
        if trap { Err(Fault::LEAVE) } else { Ok(Flow::Branch) }
    }
}

impl Event {
    /// The exception that interrupted this event's delivery: its error code says whether the event was
    /// external to the program.
    fn nested(&self, fault: Fault) -> Event {
        let mut second = Event::exception(fault);
        if matches!(fault.vector(), 10..=13) {
            second.code = second.code.map(|code| code | self.ext());
        }
        second
    }
}

fn int(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let vector = op.insn().immediate8();
    cpu.software_interrupt(vector, Source::SoftwareN)
}

fn int3(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.software_interrupt(Vector::Breakpoint as u8, Source::Software)
}

/// INT1 raises #DB as hardware would: without regard to the gate's privilege.
fn int1(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    let trap = cpu.regs.flag(rflags::TF);
    let event = Event { vector: Vector::Debug as u8, code: None, source: Source::Exception };
    cpu.deliver(&event)?;
    cpu.finish_without_trap(trap)
}

fn into(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    if !cpu.regs.flag(rflags::OF) {
        return Ok(Flow::Next);
    }
    cpu.software_interrupt(Vector::Overflow as u8, Source::Software)
}

fn bound16(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let linear = op.linear(cpu, 4, false)?;
    // Two operands, each with an alignment of its own.
    let (lower, upper) = (cpu.read::<u16>(linear)?, cpu.read::<u16>(linear.wrapping_add(2))?);
    let index = cpu.regs.get::<u16>(op.dst) as i16;
    in_bounds(lower as i16 <= index && index <= upper as i16)
}

fn bound32(cpu: &mut Cpu, op: &Op) -> Result<Flow> {
    let linear = op.linear(cpu, 8, false)?;
    let (lower, upper) = (cpu.read::<u32>(linear)?, cpu.read::<u32>(linear.wrapping_add(4))?);
    let index = cpu.regs.get::<u32>(op.dst) as i32;
    in_bounds(lower as i32 <= index && index <= upper as i32)
}

fn in_bounds(inside: bool) -> Result<Flow> {
    if inside { Ok(Flow::Next) } else { Err(Fault::new(Vector::BoundRange)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_combine_as_the_manual_says() {
        use Combination::*;
        let exception = |vector| Event { vector, code: None, source: Source::Exception };
        for (first, second, expected) in [
            (0, 13, DoubleFault),
            (13, 14, Serial),
            (14, 14, DoubleFault),
            (14, 11, DoubleFault),
            (14, 6, Serial),
            (6, 13, Serial),
            (1, 14, Serial),
            (8, 13, Shutdown),
            (8, 14, Shutdown),
        ] {
            assert_eq!(combine(&exception(first), second), expected, "{first} then {second}");
        }
        let interrupt = Event { vector: 13, code: None, source: Source::External };
        assert_eq!(combine(&interrupt, 13), Serial);
    }
}
