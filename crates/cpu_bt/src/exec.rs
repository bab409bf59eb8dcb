//! The execution loop: events, then a block, and again.

use crate::block::{Block, Flow};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::jit::state::NO_EXIT;
use crate::mmu::tlb::MmuIndex;
use crate::options::Jit;
use crate::regs::RIP;
use crate::signals::signal;
use cpu::VmExit;
use std::time::{Duration, Instant};
use x86::reg::{dr7, rflags};
use x86::segment::access;
use x86::state::seg;

impl Cpu {
    /// Executes guest code until something ends it.
    pub(crate) fn execute(&mut self) -> VmExit {
        self.signals.enter_guest();
        // The state may have been replaced, and the clock moved on, since the last time.
        self.update_fast();
        let exit = loop {
            if let Some(exit) = self.exit.take() {
                break exit;
            }
            if self.needs_attention() {
                self.handle_events();
                continue;
            }
            self.advance();
        };
        self.paravirt_settle();
        self.signals.leave_guest();
        exit
    }

    /// Whether anything is to be done before the next instruction.
    #[inline(always)]
    fn needs_attention(&self) -> bool {
        let pending = self.signals.pending();
        pending != 0 && pending & !self.deferred() != 0
            || self.halted
            || self.wait_for_sipi
            || self.pending_exception.is_some()
    }

    /// The requests that have to wait for something the guest does.
    pub(crate) fn deferred(&self) -> u32 {
        let mut deferred = 0;
        if !self.interrupts_enabled() {
            deferred |= signal::INTERRUPT;
        }
        if self.nmi_blocked || self.shadow {
            deferred |= signal::NMI;
        }
        deferred
    }

    /// Whether every instruction has to be looked at by itself.
    #[inline(always)]
    fn single_steps(&self) -> bool {
        self.shadow || self.regs.flag(rflags::TF) || self.is_watched()
    }

    /// Whether instruction breakpoints are armed.
    #[inline(always)]
    fn is_watched(&self) -> bool {
        self.sys.dr7 & dr7::ENABLES != 0 && self.has_breakpoints()
    }

    /// Whether nothing that an instruction has done keeps the next one from following it at once.
    pub(crate) fn goes_on(&self) -> bool {
        !self.single_steps() && !self.halted && self.pending_exception.is_none()
    }

    /// Goes on after translated code was left, until there is translated code again or something else
    /// to do: the address of that code, or `None`.
    pub(crate) fn resume(&mut self) -> Option<u64> {
        if self.jit.always_leave {
            return None;
        }
        loop {
            if let Some(fault) = self.jit.fault.take() {
                self.raise(fault);
            }
            if self.exit.is_some() || self.needs_attention() || self.single_steps() || !self.translates() {
                return None;
            }
            if let Some(block) = self.next_cold_block() {
                if let Err(fault) = self.run_block(&block) {
                    self.raise(fault);
                }
                continue;
            }
            // Returning would lead to translations of another kind.
            if !self.keeps_kind_of_code() {
                return None;
            }
            match self.next_code() {
                Ok(Some(code)) => return Some(code),
                Ok(None) => self.step(),
                Err(fault) => self.raise(fault),
            }
        }
    }

    /// Whether the translator executes code.
    #[inline(always)]
    fn translates(&self) -> bool {
        self.vm.options.jit == Jit::On && self.may_translate()
    }

    /// Whether code of the present mode is translated: translations distinguish the supervisor from the
    /// user, not rings 1 and 2, and check no alignment. Code of 16 bits is not, nor such whose segments are not flat.
    #[inline(always)]
    pub(crate) fn may_translate(&self) -> bool {
        (self.mode.is_64() || self.is_flat())
            && matches!(self.mode.cpl, 0 | 3)
            && self.mode.data != MmuIndex::UserAligned
    }

    /// Whether this is 32-bit code whose code, data and stack segments are all of the linear address space: the same
    /// bytes at the same addresses whichever of them is used. Data segments have to be writable too.
    #[cold]
    pub(crate) fn is_flat(&self) -> bool {
        let flat = |number: usize| {
            let segment = &self.regs.seg[number];
            segment.base == 0 && segment.limit == u32::MAX
        };
        let writable = access::PRESENT | access::NOT_SYSTEM | access::WRITABLE;
        let data = |number: usize| {
            let segment = &self.regs.seg[number];
            let grows_up = segment.access & (access::CODE | access::EXPAND_DOWN) == 0;
            flat(number) && segment.has(writable) && grows_up
        };
        let mode = &self.mode;
        (mode.code_bits, mode.stack_bits) == (32, 32)
            && mode.protected
            && !mode.v86
            && flat(seg::CS)
            && data(seg::SS)
            && data(seg::DS)
            && data(seg::ES)
    }

    /// Executes some code: translated if there is any, interpreted otherwise.
    #[inline(always)]
    fn advance(&mut self) {
        if self.vm.options.jit == Jit::Lockstep {
            return self.advance_in_lockstep();
        }
        if self.single_steps() {
            return self.step_single(self.is_watched());
        }
        if self.translates() {
            match self.run_translated() {
                Ok(true) => return,
                Ok(false) => {}
                Err(fault) => return self.raise(fault),
            }
        }
        self.step();
    }

    /// Executes one block and raises the exception it ends with.
    #[inline(always)]
    pub(crate) fn step(&mut self) {
        let linear = self.code_address();
        let result = self.find_block(linear).and_then(|block| self.run_block(&block));
        if let Err(fault) = result {
            self.raise(fault);
        }
    }

    /// Executes one instruction: single-stepping, in an interrupt shadow, or while instruction
    /// breakpoints are armed.
    #[cold]
    pub(crate) fn step_single(&mut self, watched: bool) {
        let linear = self.code_address();
        let mut result = if watched { self.check_breakpoints(linear) } else { Ok(()) };
        if result.is_ok() {
            result = self.find_block(linear).and_then(|block| self.run_single(&block));
        }
        if let Err(fault) = result {
            self.raise(fault);
        }
    }

    /// The linear address of the next instruction.
    #[inline(always)]
    fn code_address(&self) -> u64 {
        let rip = self.regs.r[RIP];
        if self.mode.is_64() {
            rip
        } else {
            self.regs.seg[x86::state::seg::CS].base.wrapping_add(rip) & 0xffff_ffff
        }
    }

    #[inline(always)]
    fn run_block(&mut self, block: &Block) -> Result<()> {
        let start = self.regs.r[RIP];
        for op in block.ops() {
            self.regs.r[RIP] = start.wrapping_add(op.offset as u64 + op.len as u64);
            match (op.run)(self, op) {
                Ok(Flow::Next) => {}
                Ok(Flow::Branch) => break,
                Err(fault) => {
                    if !fault.is_leave() {
                        self.regs.r[RIP] = start.wrapping_add(op.offset as u64);
                    }
                    return Err(fault);
                }
            }
            if self.code_modified {
                self.code_modified = false;
                break;
            }
        }
        self.wrap_rip();
        Ok(())
    }

    /// Executes the first instruction of a block, for single-stepping and interrupt shadows.
    #[cold]
    fn run_single(&mut self, block: &Block) -> Result<()> {
        let start = self.regs.r[RIP];
        let trap = self.regs.flag(rflags::TF);
        let shadow = std::mem::take(&mut self.shadow);
        let op = &block.ops()[0];
        self.regs.r[RIP] = start.wrapping_add(op.len as u64);
        if let Err(fault) = (op.run)(self, op) {
            if !fault.is_leave() {
                self.regs.r[RIP] = start;
                // The shadow covers the instruction that faulted and is over with its exception.
                let _ = shadow;
            }
            return Err(fault);
        }
        self.code_modified = false;
        self.wrap_rip();
        if trap && !self.halted {
            self.single_step_trap();
        }
        Ok(())
    }

    /// Outside 64-bit code the instruction pointer has 32 bits (16-bit code relies on its limit check).
    #[inline(always)]
    pub(crate) fn wrap_rip(&mut self) {
        if !self.mode.is_64() {
            self.regs.r[RIP] &= 0xffff_ffff;
        }
    }

    /// Leaves guest execution for good: the engine cannot do what the guest asks of the processor.
    #[cold]
    pub(crate) fn cannot_continue(&mut self, what: String) -> Fault {
        self.exit = Some(VmExit::Shutdown(format!("vCPU {} cannot execute {what}", self.id)));
        Fault::LEAVE
    }

    /// Everything that happens between instructions.
    #[cold]
    fn handle_events(&mut self) {
        // Events change where the guest goes on, and in which address space.
        self.jit.exit = NO_EXIT;
        self.heed_requests();
        if self.signals.take(signal::FLUSH_ALL) != 0 {
            self.flush_tlb_all();
        }
        self.signals.take(signal::UNHALT);
        if self.signals.take(signal::KICK) != 0 {
            self.exit = Some(VmExit::Kicked);
            return;
        }
        if self.signals.take(signal::INIT) != 0 {
            self.init_message();
            return;
        }
        if self.wait_for_sipi {
            match self.signals.take(signal::SIPI) {
                0 => self.idle(),
                _ => self.startup_message(),
            }
            return;
        }
        // A start-up message to a processor that runs is ignored.
        self.signals.take(signal::SIPI);
        if let Some((fault, address)) = self.pending_exception.take() {
            self.fault_address = address;
            self.raise(fault);
            return;
        }
        if let Some(vector) = self.pending_interrupt.take() {
            self.deliver_interrupt(vector);
            return;
        }
        if self.deferred() & signal::NMI == 0 && self.signals.take(signal::NMI) != 0 {
            self.halted = false;
            self.deliver_nmi();
            return;
        }
        // Cleared first: what arrives from now on raises it again.
        if self.interrupts_enabled() && self.signals.take(signal::INTERRUPT) != 0 {
            match self.next_interrupt() {
                Some(vector) => {
                    self.halted = false;
                    self.vm.counters.interrupts.add();
                    self.deliver_interrupt(vector);
                    // More may be pending behind it.
                    self.signals.raise(signal::INTERRUPT);
                    return;
                }
                None if self.halted => {}
                None => return,
            }
        }
        if self.halted {
            match self.lapic.take_unhalted() {
                true => self.halted = false,
                false => self.idle(),
            }
        }
    }

    /// Carries out INIT, start-up and wake-up messages that are pending. Between runs.
    pub(crate) fn take_messages(&mut self) {
        if self.signals.take(signal::INIT) != 0 {
            self.init_message();
        }
        if self.signals.take(signal::SIPI) != 0 && self.wait_for_sipi {
            self.startup_message();
        }
        if self.signals.take(signal::UNHALT) != 0 && self.lapic.take_unhalted() {
            self.halted = false;
        }
    }

    /// Sleeps until something is to be done.
    fn idle(&mut self) {
        // With interrupts disabled, only NMI, INIT and requests of the host end a halt.
        let waiting = if self.wait_for_sipi { signal::INTERRUPT | signal::NMI } else { 0 };
        let ignored = self.deferred() | waiting;
        if self.signals.pending() & !ignored == 0 {
            let begun = self.vm.clock.now();
            let quiet = self.thrift_sleep_begins(begun);
            let timeout = self.lapic.sleep_begins();
            self.paravirt_sleep_begins();
            self.signals.leave_guest();
            let timeout = [timeout, quiet].into_iter().flatten().min();
            let timeout = timeout.map(Duration::from_nanos);
            if !self.spin.until(timeout, || self.signals.pending() & !ignored != 0) {
                let asleep = Instant::now();
                self.signals.sleep(ignored, timeout);
                self.spin.slept(asleep.elapsed());
            }
            self.signals.enter_guest();
            self.paravirt_sleep_ends();
            self.lapic.sleep_ends();
            let now = self.vm.clock.now();
            self.thrift_sleep_ends(begun, now);
        }
    }
}
