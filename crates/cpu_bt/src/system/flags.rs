//! Instructions on flags that only the system may change: CLI, STI, PUSHF, POPF, CLAC, STAC; and HLT,
//! PAUSE.

use super::After::{self, *};
use crate::block::{Flow, Handler, Op};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use iced_x86::{Code, Instruction, Mnemonic};
use std::cell::Cell;
use x86::reg::{cr4, rflags};

pub(super) fn handler(insn: &Instruction) -> Option<(Handler, After)> {
    use Mnemonic::*;
    Some(match insn.mnemonic() {
        Cli => (cli, Continues),
        // The instruction after STI executes by itself, under the shadow.
        Sti => (sti, Ends),
        Pushf | Pushfd | Pushfq => match insn.code() {
            Code::Pushfw => (|cpu, _| cpu.push_flags(2), Continues),
            Code::Pushfd => (|cpu, _| cpu.push_flags(4), Continues),
            _ => (|cpu, _| cpu.push_flags(8), Continues),
        },
        Popf | Popfd | Popfq => match insn.code() {
            Code::Popfw => (|cpu, _| cpu.pop_flags(2), Ends),
            Code::Popfd => (|cpu, _| cpu.pop_flags(4), Ends),
            _ => (|cpu, _| cpu.pop_flags(8), Ends),
        },
        Clac => (clac, Continues),
        Stac => (stac, Continues),
        Hlt => (hlt, Ends),
        Pause => (pause, Continues),
        _ => return None,
    })
}

/// Which flag CLI and STI act on.
enum Target {
    Interrupt,
    /// RFLAGS.VIF: privilege level 3 with protected-mode virtual interrupts, or virtual-8086 mode with
    /// its extensions (SDM vol. 3B, §21.3 and §21.4).
    Virtual,
}

impl Cpu {
    fn iopl(&self) -> u8 {
        (self.regs.rflags >> 12 & 3) as u8
    }

    fn interrupt_flag_target(&self) -> Result<Target> {
        if self.cpl() <= self.iopl() {
            return Ok(Target::Interrupt);
        }
        let extension = if self.mode.v86 { cr4::VME } else { cr4::PVI };
        match self.cpl() == 3 && self.sys.cr4 & extension != 0 {
            true => Ok(Target::Virtual),
            false => Err(Fault::GP0),
        }
    }

    /// Whether PUSHF and POPF act on VIF in place of IF; #GP(0) where virtual-8086 mode forbids them.
    fn flags_are_virtual(&self, size: u8) -> Result<bool> {
        if !self.mode.v86 || self.iopl() == 3 {
            return Ok(false);
        }
        match self.sys.cr4 & cr4::VME != 0 && size == 2 {
            true => Ok(true),
            false => Err(Fault::GP0),
        }
    }

    fn push_flags(&mut self, size: u8) -> Result<Flow> {
        let mut flags = self.regs.rflags & !(rflags::VM | rflags::RF);
        if self.flags_are_virtual(size)? {
            let interrupts = if flags & rflags::VIF != 0 { rflags::IF } else { 0 };
            flags = flags & !rflags::IF | interrupts | rflags::IOPL;
        }
        let mut stack = self.current_stack();
        self.push_to(&mut stack, size, flags)?;
        self.commit_stack(&stack);
        Ok(Flow::Next)
    }

    /// POPF (SDM vol. 2B, table 4-15).
    fn pop_flags(&mut self, size: u8) -> Result<Flow> {
        let is_virtual = self.flags_are_virtual(size)?;
        let mut stack = self.current_stack();
        let flags = self.pop_from(&mut stack, size)?;
        let mut mask =
            rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID | rflags::RF;
        let mut new = flags & !rflags::RF;
        if is_virtual {
            let pending = self.regs.flag(rflags::VIP) && flags & rflags::IF != 0;
            if pending || flags & rflags::TF != 0 {
                return Err(Fault::GP0);
            }
            let interrupts = if flags & rflags::IF != 0 { rflags::VIF } else { 0 };
            self.regs.rflags = self.regs.rflags & !rflags::VIF | interrupts;
        } else {
            if self.cpl() <= self.iopl() {
                mask |= rflags::IF;
            }
            if self.cpl() == 0 {
                mask |= rflags::IOPL;
            }
            // In protected mode the virtual interrupt flags are cleared.
            if !self.mode.v86 && self.mode.protected {
                mask |= rflags::VIF | rflags::VIP;
                new &= !(rflags::VIF | rflags::VIP);
            }
        }
        if size == 2 {
            mask &= 0xffff;
        }
        self.commit_stack(&stack);
        self.regs.rflags = self.regs.rflags & !mask | new & mask | rflags::FIXED;
        self.update_mode();
        Ok(Flow::Next)
    }
}

fn cli(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    match cpu.interrupt_flag_target()? {
        Target::Interrupt => cpu.regs.rflags &= !rflags::IF,
        Target::Virtual => cpu.regs.rflags &= !rflags::VIF,
    }
    Ok(Flow::Next)
}

fn sti(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    match cpu.interrupt_flag_target()? {
        Target::Interrupt => {
            // The shadow begins only where interrupts were disabled (SDM vol. 2B, STI).
            cpu.shadow = !cpu.regs.flag(rflags::IF);
            cpu.regs.rflags |= rflags::IF;
        }
        Target::Virtual if cpu.regs.flag(rflags::VIP) => return Err(Fault::GP0),
        Target::Virtual => cpu.regs.rflags |= rflags::VIF,
    }
    Ok(Flow::Next)
}

/// CLAC and STAC: undefined but at privilege level 0.
fn set_ac(cpu: &mut Cpu, set: bool) -> Result<Flow> {
    if cpu.cpl() != 0 {
        return Err(Fault::UNDEFINED);
    }
    cpu.regs.rflags = cpu.regs.rflags & !rflags::AC | if set { rflags::AC } else { 0 };
    cpu.update_mode();
    Ok(Flow::Next)
}

fn clac(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    set_ac(cpu, false)
}

fn stac(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    set_ac(cpu, true)
}

fn hlt(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    cpu.require_cpl0()?;
    cpu.vm.counters.halts.add();
    cpu.halted = true;
    Ok(Flow::Next)
}

/// PAUSEs between giving up the host processor, when there are more vCPUs than host processors.
const PAUSES_PER_YIELD: u32 = 64;

/// A hint that this vCPU waits for another, which perhaps needs the host processor that this one has.
fn pause(cpu: &mut Cpu, _op: &Op) -> Result<Flow> {
    thread_local! {
        static PAUSES: Cell<u32> = const { Cell::new(0) };
    }
    std::hint::spin_loop();
    if cpu.vm.signals.len() > 1 {
        let pauses = PAUSES.get() + 1;
        PAUSES.set(pauses % PAUSES_PER_YIELD);
        if pauses == PAUSES_PER_YIELD && cpu.vm.signals.len() > host_processors() {
            std::thread::yield_now();
        }
    }
    Ok(Flow::Next)
}

fn host_processors() -> usize {
    static COUNT: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, |count| count.get()))
}
