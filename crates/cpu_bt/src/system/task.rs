//! Hardware task switches (SDM vol. 3A, §8.3), outside long mode.

use super::descriptor::{is_null, rpl};
use super::segment::{null_stack_segment, virtual_8086_segment};
use crate::cpu::{Cpu, Paging};
use crate::fault::{Fault, Result};
use crate::regs::RIP;
use x86::Vector;
use x86::reg::{cr0, dr6, rflags};
use x86::segment::{access, system_type};
use x86::state::seg;

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    Jump,
    Call,
    /// Interrupt or exception through a task gate.
    Interrupt,
    Iret,
}

/// Offset of the T (debug trap) bit in a 32-bit TSS.
const TRAP_OFFSET: u64 = 100;

/// The registers that a TSS holds.
#[derive(Clone, Copy, Debug, Default)]
struct TaskState {
    cr3: Option<u32>,
    eip: u32,
    eflags: u32,
    gpr: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// Switches to the task of a TSS. `error` is pushed on its stack.
    ///
    /// A fault before the switch is complete enough to count is returned; one in the new task's context
    /// is left pending, to be raised there.
    pub(super) fn switch_task(&mut self, selector: u16, how: Switch, error: Option<u16>) -> Result<()> {
        // What IRET finds wrong is the fault of the old TSS's link field.
        let vector = if how == Switch::Iret { Vector::InvalidTss } else { Vector::GeneralProtection };
        if is_null(selector) || selector & 4 != 0 {
            return Err(Fault::with_code(vector, selector & !3));
        }
        let descriptor = self.descriptor(selector, vector)?;
        let mut segment = descriptor.segment();
        let busy_bit = system_type::TSS_BUSY ^ system_type::TSS_AVAILABLE;
        let is_tss = matches!(segment.access & (access::NOT_SYSTEM | 15) & !busy_bit, 1 | 9);
        if !is_tss || segment.has(busy_bit) != (how == Switch::Iret) {
            return Err(descriptor.fault(vector));
        }
        if !segment.has(access::PRESENT) {
            return Err(descriptor.fault(Vector::SegmentNotPresent));
        }
        let wide = segment.kind() & 8 != 0;
        if segment.limit < if wide { 0x67 } else { 0x2b } {
            return Err(descriptor.fault(Vector::InvalidTss));
        }

        let old = self.sys.tr;
        let nested = matches!(how, Switch::Call | Switch::Interrupt);
        let mut new = self.read_task(segment.base, wide)?;
        self.save_task(how)?;
        if nested {
            self.write_system(segment.base, 0, old.selector)?;
            new.eflags |= rflags::NT as u32;
        }
        if !nested && let Some(old) = self.find_descriptor(old.selector)? {
            self.mark_busy(&old, false)?;
        }
        if how != Switch::Iret {
            self.mark_busy(&descriptor, true)?;
        }

        // From here on the new task executes.
        segment.access |= busy_bit;
        self.sys.tr = segment;
        self.sys.cr0 |= cr0::TS;
        // Local breakpoints belong to the old task.
        self.sys.dr7 &= !0x55;
        if let Err(fault) = self.enter_task(&new, wide, error) {
            self.pending_exception = Some((fault, self.fault_address));
        }
        Ok(())
    }

    fn read_task(&mut self, base: u64, wide: bool) -> Result<TaskState> {
        let mut task = TaskState::default();
        if wide {
            task.cr3 = Some(self.read_system(base, 0x1c)?);
            task.eip = self.read_system(base, 0x20)?;
            task.eflags = self.read_system(base, 0x24)?;
            for (offset, register) in (0x28..).step_by(4).zip(&mut task.gpr) {
                *register = self.read_system(base, offset)?;
            }
            for (offset, selector) in (0x48..).step_by(4).zip(&mut task.selectors) {
                *selector = self.read_system(base, offset)?;
            }
            task.ldt = self.read_system(base, 0x60)?;
            task.trap = self.read_system::<u16>(base, TRAP_OFFSET)? & 1 != 0;
        } else {
            task.eip = self.read_system::<u16>(base, 0x0e)? as u32;
            task.eflags = self.read_system::<u16>(base, 0x10)? as u32;
            for (offset, register) in (0x12..).step_by(2).zip(&mut task.gpr) {
                // The upper halves are undefined; processors load ones.
                *register = self.read_system::<u16>(base, offset)? as u32 | 0xffff_0000;
            }
            for (offset, selector) in (0x22..).step_by(2).zip(&mut task.selectors[..4]) {
                *selector = self.read_system(base, offset)?;
            }
            task.ldt = self.read_system(base, 0x2a)?;
        }
        Ok(task)
    }

    /// Writes the present registers to the present TSS.
    fn save_task(&mut self, how: Switch) -> Result<()> {
        let tr = self.sys.tr;
        let mut flags = self.regs.rflags;
        if how == Switch::Iret {
            flags &= !rflags::NT;
        }
        let rip = self.regs.r[RIP];
        if tr.kind() & 8 != 0 {
            self.write_system(tr.base, 0x20, rip as u32)?;
            self.write_system(tr.base, 0x24, flags as u32)?;
            for index in 0..8 {
                self.write_system(tr.base, 0x28 + 4 * index as u64, self.regs.r[index] as u32)?;
            }
            for index in 0..6 {
                self.write_system(tr.base, 0x48 + 4 * index as u64, self.regs.seg[index].selector)?;
            }
        } else {
            self.write_system(tr.base, 0x0e, rip as u16)?;
            self.write_system(tr.base, 0x10, flags as u16)?;
            for index in 0..8 {
                self.write_system(tr.base, 0x12 + 2 * index as u64, self.regs.r[index] as u16)?;
            }
            for index in 0..4 {
                self.write_system(tr.base, 0x22 + 2 * index as u64, self.regs.seg[index].selector)?;
            }
        }
        Ok(())
    }

    /// Loads the registers of a task, then its segments with their checks.
    fn enter_task(&mut self, task: &TaskState, wide: bool, error: Option<u16>) -> Result<()> {
        for (register, value) in self.regs.r.iter_mut().zip(task.gpr) {
            *register = value as u64;
        }
        self.regs.r[RIP] = task.eip as u64;
        let settable = rflags::STATUS
            | rflags::TF
            | rflags::IF
            | rflags::DF
            | rflags::IOPL
            | rflags::NT
            | rflags::VM
            | rflags::AC
            | rflags::VIF
            | rflags::VIP
            | rflags::ID;
        self.regs.rflags = task.eflags as u64 & settable | rflags::FIXED;
        if !wide {
            self.regs.rflags &= 0xffff;
        }
        self.shadow = false;
        for index in 0..6 {
            let selector = task.selectors[index];
            self.regs.seg[index] = null_stack_segment(selector, 0);
        }
        let cpl = if self.regs.flag(rflags::VM) { 3 } else { rpl(task.selectors[seg::CS]) };
        self.regs.seg[seg::SS] = null_stack_segment(task.selectors[seg::SS], cpl);
        self.sys.ldtr = x86::Segment { selector: task.ldt, ..Default::default() };
        self.update_mode();
        if let Some(cr3) = task.cr3
            && self.mode.paging != Paging::None
        {
            self.switch_page_tables(cr3 as u64, false)?;
        }

        self.sys.ldtr = self.checked_ldt(task.ldt, Vector::InvalidTss)?;
        if self.mode.v86 {
            for index in 0..6 {
                self.regs.seg[index] = virtual_8086_segment(task.selectors[index]);
            }
        } else {
            self.load_task_segments(task, cpl)?;
        }
        self.update_mode();
        let code = self.regs.seg[seg::CS];
        self.check_target(&code, task.eip as u64)?;
        if let Some(error) = error {
            let mut stack = self.current_stack();
            self.push_to(&mut stack, if wide { 4 } else { 2 }, error as u64)?;
            self.commit_stack(&stack);
        }
        if task.trap {
            self.sys.dr6 |= dr6::BT;
            return Err(Fault::new(Vector::Debug));
        }
        Ok(())
    }

    fn load_task_segments(&mut self, task: &TaskState, cpl: u8) -> Result<()> {
        let selector = task.selectors[seg::CS];
        let invalid = Fault::with_code(Vector::InvalidTss, selector & !3);
        if is_null(selector) {
            return Err(invalid);
        }
        let code = self.descriptor(selector, Vector::InvalidTss)?;
        let segment = code.segment();
        let reachable = match segment.has(access::CONFORMING) {
            true => segment.dpl() <= cpl,
            false => segment.dpl() == cpl,
        };
        if !segment.has(access::NOT_SYSTEM | access::CODE) || !reachable {
            return Err(invalid);
        }
        if !segment.has(access::PRESENT) {
            return Err(code.fault(Vector::SegmentNotPresent));
        }
        let selector = task.selectors[seg::SS];
        if is_null(selector) {
            return Err(Fault::with_code(Vector::InvalidTss, selector & !3));
        }
        self.regs.seg[seg::SS] = self.stack_segment(selector, cpl, Vector::InvalidTss)?;
        self.regs.seg[seg::CS] = self.mark_accessed(&code)?;
        self.update_mode();
        for index in [seg::DS, seg::ES, seg::FS, seg::GS] {
            self.regs.seg[index] = self.data_segment(task.selectors[index], Vector::InvalidTss)?;
        }
        Ok(())
    }
}
