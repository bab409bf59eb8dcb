//! IRET in all modes (SDM vol. 2A, IRET).

use super::After::{self, *};
use super::descriptor::rpl;
use super::segment::virtual_8086_segment;
use super::stack::Stack;
use super::task::Switch;
use crate::block::{Flow, Handler};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::int::Int;
use crate::regs::{RIP, RSP};
use iced_x86::{Code, Instruction};
use x86::Segment;
use x86::paging::is_canonical;
use x86::reg::{cr4, rflags};
use x86::segment::access;
use x86::state::seg;

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    Some(match insn.code() {
        Code::Iretw => (|cpu, _| cpu.iret(2), Ends),
        Code::Iretd => (|cpu, _| cpu.iret(4), Ends),
        Code::Iretq => (|cpu, _| cpu.iret(8), Ends),
        _ => return None,
    })
}

/// Flags that any IRET may change.
const ORDINARY: u64 =
    rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID;

impl Cpu {
    fn iret(&mut self, size: u8) -> Result<Flow> {
        match () {
            _ if size == 8 && self.iret_to_the_same() => {}
            _ if !self.mode.protected => self.iret_real(size)?,
            _ if self.mode.v86 => self.iret_virtual_8086(size)?,
            _ if self.regs.flag(rflags::NT) => {
                if self.mode.long {
                    return Err(Fault::GP0);
                }
                let link = self.read_system::<u16>(self.sys.tr.base, 0)?;
                self.switch_task(link, Switch::Iret, None)?;
            }
            _ => self.iret_protected(size)?,
        }
        self.nmi_blocked = false;
        self.drop_resume_flag();
        Ok(Flow::Branch)
    }

    /// IRET in 64-bit mode that loads the code and stack segments which are loaded already, from descriptors that say
    /// the same still: kernels serialise with it, thousands of times while they patch themselves at their start. False,
    /// and nothing is done, where there is more to it.
    fn iret_to_the_same(&mut self) -> bool {
        const FRAME_LEN: usize = 40;
        if !self.mode.is_64() || self.regs.flag(rflags::NT) {
            return false;
        }
        let Some(frame) = self.tlb.lookup_read(self.mode.data, self.regs.r[RSP], FRAME_LEN) else {
            return false;
        };
        // SAFETY: a TLB entry maps a whole page of RAM, and the frame lies in it.
        let [rip, cs, flags, sp, ss] = [0, 8, 16, 24, 32].map(|at| unsafe { u64::load(frame.add(at)) });
        let same = |number: usize, selector: u64| {
            let loaded = &self.regs.seg[number];
            let table = &self.sys.gdtr;
            let offset = selector & 0xfff8;
            if selector as u16 != loaded.selector || selector & 4 != 0 || offset + 7 > table.limit as u64 {
                return false;
            }
            let address = table.base.wrapping_add(offset);
            self.tlb.lookup_read(self.implicit_mmu(), address, 8).is_some_and(|at| {
                // SAFETY: as above.
                Segment::from_descriptor(loaded.selector, unsafe { u64::load(at) }) == *loaded
            })
        };
        if !same(seg::CS, cs) || !same(seg::SS, ss) || !is_canonical(rip) {
            return false;
        }
        self.set_flags(8, flags, self.iret_mask(self.cpl()));
        self.regs.r[RSP] = sp;
        self.regs.r[RIP] = rip;
        self.update_mode();
        true
    }

    /// Replaces the flags selected by `mask`; a 16-bit operand has no upper half.
    fn set_flags(&mut self, size: u8, flags: u64, mask: u64) {
        let mask = if size == 2 { mask & 0xffff } else { mask };
        self.regs.rflags = self.regs.rflags & !mask | flags & mask | rflags::FIXED;
    }

    fn iret_real(&mut self, size: u8) -> Result<()> {
        let mut stack = self.current_stack();
        let rip = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        let flags = self.pop_from(&mut stack, size)?;
        if rip > self.regs.seg[seg::CS].limit as u64 {
            return Err(Fault::GP0);
        }
        self.commit_stack(&stack);
        self.set_flags(size, flags, ORDINARY | rflags::IF | rflags::IOPL);
        self.load_real_segment(seg::CS, selector);
        self.regs.r[RIP] = rip;
        self.update_mode();
        Ok(())
    }

    fn iret_virtual_8086(&mut self, size: u8) -> Result<()> {
        let iopl3 = self.regs.flag(rflags::IOPL);
        let extended = self.sys.cr4 & cr4::VME != 0 && size == 2;
        if !iopl3 && !extended {
            return Err(Fault::GP0);
        }
        let mut stack = self.current_stack();
        let rip = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        let flags = self.pop_from(&mut stack, size)?;
        if rip > self.regs.seg[seg::CS].limit as u64 {
            return Err(Fault::GP0);
        }
        if iopl3 {
            self.set_flags(size, flags, ORDINARY | rflags::IF);
        } else {
            // IF goes to VIF; one that would let a pending virtual interrupt in, or TF, traps.
            let pending = self.regs.flag(rflags::VIP) && flags & rflags::IF != 0;
            if pending || flags & rflags::TF != 0 {
                return Err(Fault::GP0);
            }
            self.set_flags(size, flags, ORDINARY);
            let virtual_if = if flags & rflags::IF != 0 { rflags::VIF } else { 0 };
            self.regs.rflags = self.regs.rflags & !rflags::VIF | virtual_if;
        }
        self.commit_stack(&stack);
        self.regs.seg[seg::CS] = virtual_8086_segment(selector);
        self.regs.r[RIP] = rip;
        self.update_mode();
        Ok(())
    }

    fn iret_protected(&mut self, size: u8) -> Result<()> {
        let cpl = self.cpl();
        let from_64 = self.mode.is_64();
        let mut stack = self.current_stack();
        let rip = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        let flags = self.pop_from(&mut stack, size)?;
        if flags & rflags::VM != 0 && size == 4 && cpl == 0 && !self.mode.long {
            return self.iret_to_virtual_8086(stack, rip, selector, flags);
        }
        let code = self.return_code(selector)?;
        let new_cpl = rpl(selector);
        let target = code.segment();
        if !from_64 && new_cpl == cpl {
            self.check_target(&target, rip)?;
            let segment = self.mark_accessed(&code)?;
            self.commit_stack(&stack);
            self.set_flags(size, flags, self.iret_mask(cpl));
            self.enter_code(segment, cpl, rip);
            return Ok(());
        }
        // From 64-bit mode SS and RSP are always popped.
        let sp = self.pop_from(&mut stack, size)?;
        let ss = self.pop_from(&mut stack, size)? as u16;
        let stack_segment = self.return_stack(ss, new_cpl, &target)?;
        self.check_target(&target, rip)?;
        let segment = self.mark_accessed(&code)?;
        self.set_flags(size, flags, self.iret_mask(cpl));
        if new_cpl > cpl {
            self.enter_outer(segment, new_cpl, rip, stack_segment, sp, 0);
        } else {
            let to_64 = target.has(access::LONG) && self.mode.long;
            let bits = if to_64 { 64 } else { Stack::bits_of(&stack_segment) };
            let stack = Stack { segment: stack_segment, sp, bits, mmu: self.mode.data, fault: Fault::SS0 };
            self.commit_stack(&stack);
            self.regs.seg[seg::SS] = stack_segment;
            self.enter_code(segment, new_cpl, rip);
        }
        Ok(())
    }

    /// Which flags IRET at privilege `cpl` may change.
    fn iret_mask(&self, cpl: u8) -> u64 {
        let iopl = (self.regs.rflags >> 12 & 3) as u8;
        let mut mask = ORDINARY;
        if cpl <= iopl {
            mask |= rflags::IF;
        }
        if cpl == 0 {
            mask |= rflags::IOPL | rflags::VIF | rflags::VIP;
        }
        mask
    }

    fn iret_to_virtual_8086(&mut self, mut stack: Stack, rip: u64, cs: u16, flags: u64) -> Result<()> {
        let sp = self.pop_from(&mut stack, 4)?;
        let mut selectors = [0u16; 6];
        for index in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS] {
            selectors[index] = self.pop_from(&mut stack, 4)? as u16;
        }
        selectors[seg::CS] = cs;
        if rip > 0xffff {
            return Err(Fault::GP0);
        }
        let mask = self.iret_mask(0) | rflags::VM;
        self.set_flags(4, flags, mask);
        for (segment, selector) in self.regs.seg.iter_mut().zip(selectors) {
            *segment = virtual_8086_segment(selector);
        }
        self.regs.r[RSP] = sp;
        self.regs.r[RIP] = rip;
        self.update_mode();
        Ok(())
    }
}
