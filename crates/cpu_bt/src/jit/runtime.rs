//! The way into translated code and back, and the helpers that it calls.

use super::cache::Key;
use super::guessing::Experience;
use super::mapping::{Mapping, S0, S1};
use super::state::{Bytes, JitState, NO_EXIT, Site, TARGETS};
use super::translator::Made;
use super::{FRAMES, key_of, page_id, page_of};
use crate::block::arena::BlockRef;
use crate::block::cache::Known;
use crate::block::{Block, Flow, TRANSLATED, UNTRANSLATABLE};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::mmu::access::crosses;
use crate::mmu::guess::Guess;
use crate::mmu::tlb::MmuIndex;
use crate::mmu::walk::Access;
use crate::options::Jit;
use crate::regs::RIP;
use crate::signals::{Signals, signal};
use x86::reg::{cr4, rflags};

/// Length of the return stack in bytes: what deeper calls do leaves translated code now and then.
const RETURN_STACK: u64 = 64 * 1024;

/// What a helper tells translated code.
mod verdict {
    /// The guest's state is in order in the vCPU: leave.
    pub(super) const LEAVE: u64 = 0;
    /// The instruction is done: go on behind it.
    pub(super) const DONE: u64 = 1;
}

impl Cpu {
    /// Executes translated code at the present instruction, if there is any; false when there is none
    /// and it has to be interpreted.
    #[inline]
    pub(crate) fn run_translated(&mut self) -> Result<bool> {
        let Some(code) = self.next_code()? else { return Ok(false) };
        self.enter_translated(code);
        self.take_translated_fault()?;
        Ok(true)
    }

    /// The translated code of the present instruction, if there is any, ready to be entered.
    #[inline]
    pub(crate) fn next_code(&mut self) -> Result<Option<u64>> {
        let linear = self.regs.r[RIP];
        let key = self.key_at(linear);
        self.heed_kind_of_code(key);
        let known = match self.blocks.translated(linear, key) {
            Known::Nothing => self.find_translation(linear, key)?,
            known => known,
        };
        let exit = std::mem::replace(&mut self.jit.exit, NO_EXIT);
        let Known::Code(code, id) = known else { return Ok(None) };
        // The entry verifies that its page is known, which may have made room for another.
        self.jit.note_page(self.mode.data, linear & !0xfff, id);
        // An interrupt may have been delivered since the exit was taken: this is its target only if the
        // guest is still where it left.
        if exit != NO_EXIT
            && linear == self.jit.exit_target
            && self.vm.code.cache().link(exit, page_of(id) | linear & 0xfff, key)
        {
            self.vm.counters.chains.add();
        }
        self.prepare_entry();
        Ok(Some(code))
    }

    /// The block of the present instruction, if that is known to be interpreted a few times more.
    #[inline]
    pub(crate) fn next_cold_block(&mut self) -> Option<BlockRef> {
        let linear = self.regs.r[RIP];
        if self.jit.careful != 0 {
            return None;
        }
        let block = self.find_cold_block(linear)?;
        self.jit.exit = NO_EXIT;
        Some(block)
    }

    /// Puts in order what translated code expects in [`JitState`].
    pub(crate) fn prepare_entry(&mut self) {
        self.arm();
        self.jit.entered = self.regs.r[RIP];
        self.jit.handled = false;
        // Returns are by the return stack only where the supervisor may not touch user pages, if SMAP is on.
        let returning = match self.mode.data {
            MmuIndex::KernelAc if self.sys.cr4 & cr4::SMAP != 0 => MmuIndex::Kernel,
            data => data,
        };
        self.jit.underflow = self.jit.underflows[returning as usize];
        self.split_flags();
    }

    /// Traces end from now on only if there is something to do first.
    #[inline]
    fn arm(&self) {
        self.signals.arm(self.jit.return_stack_end, self.deferred());
    }

    /// What the next translation depends on, at `linear`.
    #[inline]
    pub(crate) fn key_at(&mut self, linear: u64) -> Key {
        // An interrupt may have been delivered since the last one asked for care.
        match std::mem::take(&mut self.jit.careful) != 0 && linear == self.jit.exit_target {
            true => key_of(self).with_care(),
            false => key_of(self),
        }
    }

    /// What linear pages are known to lead to holds for one kind of code. Where another kind comes, of the same
    /// privilege, jumps between pages would find translations of the first.
    #[inline]
    fn heed_kind_of_code(&mut self, key: Key) {
        if self.is_of_another_kind(key) {
            self.change_kind_of_code(key);
        }
    }

    #[inline]
    fn is_of_another_kind(&self, key: Key) -> bool {
        self.jit.kinds[key.is_user() as usize] != key.kind_of_code()
    }

    /// Whether the code that comes is of the kind that the return stack holds translations of.
    #[inline]
    pub(crate) fn keeps_kind_of_code(&self) -> bool {
        !self.is_of_another_kind(key_of(self))
    }

    #[cold]
    fn change_kind_of_code(&mut self, key: Key) {
        self.jit.forget_pages();
        let kind = key.kind_of_code();
        // Of vector instructions, the way from one privilege to another asks nothing.
        let vectors = Key::SIMD | Key::AVX;
        self.jit.kinds.iter_mut().for_each(|other| *other = *other & !vectors | kind & vectors);
        self.jit.kinds[key.is_user() as usize] = kind;
        // Nor of the size of code.
        self.update_fast();
    }

    /// Counts why translated code was left.
    fn count_exit(&mut self) {
        let counts = &self.counts;
        let why = if self.jit.fault.is_some() {
            counts.exits_fault.add();
            "fault"
        } else if self.jit.exit != NO_EXIT {
            counts.exits_unlinked.add();
            "unlinked"
        } else if std::mem::take(&mut self.jit.handled) {
            counts.exits_handler.add();
            "handler"
        } else if self.signals.ends_traces() {
            counts.exits_request.add();
            "request"
        } else {
            counts.exits_unknown_target.add();
            "unknown target"
        };
        if let Some(trace) = &self.vm.options.trace {
            self.trace_exit(trace, self.jit.entered, why);
        }
    }

    pub(crate) fn enter_translated(&mut self, code: u64) {
        let linear = self.regs.r[RIP];
        let enter = self.jit.enter;
        // The return stack begins a few frames further down.
        let end = (&raw const linear as u64).wrapping_sub(RETURN_STACK);
        if self.jit.return_stack_end != end {
            self.jit.return_stack_end = end;
            self.arm();
        }
        // SAFETY: `enter` is the generated routine with this signature; `code` is a trace in the same
        // arena, which is emptied only when no vCPU is in translated code. Both keep the ABI's promises;
        // what they write is this vCPU and guest memory.
        unsafe {
            let enter: extern "sysv64" fn(u64, u64, *mut Cpu) = std::mem::transmute(enter as usize);
            // The code finds the vCPU through GS; it is passed so that the compiler knows it changes.
            enter(code, linear, self);
        }
    }

    /// Puts in order what the routine that leaves translated code has left in [`JitState`].
    fn left_translated(&mut self) {
        self.count_exit();
        self.jit.simd_loaded = 0;
        self.jit.exit_target = self.regs.r[RIP];
        self.join_flags();
    }

    /// RFLAGS as translated code keeps them.
    fn split_flags(&mut self) {
        self.jit.flags = self.regs.rflags & rflags::STATUS | rflags::FIXED;
        self.jit.system_flags = self.regs.rflags & !rflags::STATUS;
    }

    /// RFLAGS from what translated code left.
    fn join_flags(&mut self) {
        self.regs.rflags = self.jit.system_flags | self.jit.flags & rflags::STATUS;
    }

    /// Finds the translation of the present instruction, or makes it when its block is hot.
    #[inline(never)]
    pub(crate) fn find_translation(&mut self, linear: u64, key: Key) -> Result<Known> {
        let gpa = self.fetch_address(linear)?;
        let code = match self.blocks.translated_at(gpa, key) {
            Some(code) => code,
            None => match self.find_or_translate(linear, gpa, key)? {
                Known::Code(code, _) => code,
                known => {
                    self.blocks.note_translated(linear, gpa, key, known);
                    return Ok(known);
                }
            },
        };
        let known = Known::Code(code, page_id(gpa, key));
        self.blocks.note_translated(linear, gpa, key, known);
        if self.vm.options.jit == Jit::On && !key.careful() {
            self.jit.note_target(self.mode.data, linear, code);
        }
        Ok(known)
    }

    fn find_or_translate(&mut self, linear: u64, gpa: u64, key: Key) -> Result<Known> {
        let block = self.find_block(linear)?;
        let second = block.second_page;
        if second.is_some() && self.vm.options.jit == Jit::Lockstep || block.hits.get() == UNTRANSLATABLE {
            return Ok(Known::Interpret);
        }
        // Others may have translated what this vCPU meets first.
        if !self.jit.ready && !self.prepare_code_cache() {
            return Ok(Known::Nothing);
        }
        let found = self.vm.code.cache().find(gpa, key).map(|translation| translation.verified);
        if let Some(code) = found {
            if !key.careful() {
                block.hits.set(TRANSLATED);
            }
            return Ok(Known::Code(code, page_id(gpa, key)));
        }
        // What was translated and is void has to become hot again.
        let hits = if block.hits.get() == TRANSLATED { 0 } else { block.hits.get() };
        block.hits.set(hits + 1);
        // What comes from translated code is hot already.
        if hits < self.hot() && !key.careful() {
            return Ok(Known::Nothing);
        }
        match self.translate_trace(gpa, second, key) {
            Made::Code(code) => {
                if !key.careful() {
                    block.hits.set(TRANSLATED);
                }
                Ok(Known::Code(code, page_id(gpa, key)))
            }
            Made::Never if !key.careful() => {
                block.hits.set(UNTRANSLATABLE);
                Ok(Known::Interpret)
            }
            Made::Never | Made::NotNow => Ok(Known::Nothing),
        }
    }

    /// The fault that translated code ended with.
    pub(crate) fn take_translated_fault(&mut self) -> Result<()> {
        match self.jit.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Forgets all addresses of translated code.
    pub(crate) fn forget_translations(&mut self) {
        if self.jit.ready {
            self.jit.forget_targets();
        }
        self.jit.forget_pages();
        self.jit.exit = NO_EXIT;
        self.blocks.forget_translated();
    }

    /// The address of the noted site's instruction.
    fn site_address(&self) -> u64 {
        self.jit.page.wrapping_add(Site(self.jit.site).offset())
    }

    /// Puts the guest's state, as the noted site's instruction finds it, into the vCPU.
    fn settle(&mut self) -> u64 {
        let site = Site(self.jit.site);
        site.mapping().to_file(&self.jit.host, &mut self.regs);
        self.join_flags();
        let linear = self.site_address();
        self.regs.r[RIP] = linear;
        linear
    }

    /// Puts the guest's state back for translated code.
    fn unsettle(&mut self) {
        Site(self.jit.site).mapping().to_host(&self.regs, &mut self.jit.host);
    }

    /// Executes the instruction of the noted site by its handler.
    fn interpret_site(&mut self) -> u64 {
        self.interpret_site_since(self.tlb.flushes())
    }

    /// The same; the trace goes on only if nothing was dropped from the TLB since `flushes`.
    fn interpret_site_since(&mut self, flushes: u64) -> u64 {
        let ends = Site(self.jit.site).ends();
        let linear = self.settle();
        let mark = self.guard_mark();
        let (forgotten, code, key) = (self.blocks.forgotten(), self.blocks.code_generation(), key_of(self));
        let result = self.find_block(linear).and_then(|block| self.run_first(&block));
        if self.guard_undo(mark) {
            return verdict::LEAVE;
        }
        self.split_flags();
        match result {
            Ok(Flow::Next)
                if !self.code_modified
                    && self.exit.is_none()
                    && key_of(self) == key
                    // The trace may rely on what it checked before, and on where its page is.
                    && (ends || self.blocks.forgotten() == forgotten && self.tlb.flushes() == flushes)
                    // The trace itself may be gone.
                    && self.blocks.code_generation() == code
                    && self.goes_on()
                    // What was waiting for interrupts to be enabled must not wait until they are disabled again.
                    && self.signals.pending() & signal::INTERRUPT & !self.deferred() == 0 =>
            {
                self.arm();
                self.unsettle();
                verdict::DONE
            }
            Ok(_) => {
                self.code_modified = false;
                self.jit.handled = true;
                verdict::LEAVE
            }
            Err(fault) => self.leave_with(fault),
        }
    }

    /// Executes the instruction of the noted site by its handler, after which the guest goes on wherever
    /// that says.
    fn hand_over(&mut self) -> u64 {
        let linear = self.settle();
        let key = key_of(self);
        let result = self.find_block(linear).and_then(|block| {
            if let Some(second) = block.second_page
                && second >> 12 < FRAMES
            {
                // So that its translation finds it the next time.
                let next = (linear & !0xfff).wrapping_add(0x1000);
                self.jit.note_page(self.mode.data, next, page_id(second, key));
            }
            self.run_first(&block)
        });
        self.split_flags();
        let modified = std::mem::take(&mut self.code_modified);
        match result {
            Err(fault) => self.leave_with(fault),
            Ok(_) if !modified && self.stays_in_code_of(key) => self.go_on_elsewhere(),
            Ok(_) => {
                self.jit.handled = true;
                verdict::LEAVE
            }
        }
    }

    /// Whether translated code of the same kind and privilege follows, if there is any, and nothing comes before it.
    fn stays_in_code_of(&self, key: Key) -> bool {
        key_of(self) == key
            && !key.compat()
            && self.exit.is_none()
            && !self.jit.always_leave
            && self.goes_on()
            && self.may_translate()
            && self.signals.pending() & !self.deferred() == 0
    }

    /// Goes to the present instruction by the table of branch targets, as an indirect branch would.
    fn go_on_elsewhere(&mut self) -> u64 {
        self.arm();
        let linear = self.regs.r[RIP];
        let target = &raw const self.jit.targets[self.mode.data as usize][linear as usize % TARGETS];
        Mapping::CANONICAL.to_host(&self.regs, &mut self.jit.host);
        (self.jit.host[S0 as usize], self.jit.host[S1 as usize]) = (linear, target as u64);
        verdict::DONE
    }

    /// Executes the first instruction of a block, which is the present one.
    fn run_first(&mut self, block: &Block) -> Result<Flow> {
        let linear = self.regs.r[RIP];
        let op = &block.ops()[0];
        self.regs.r[RIP] = linear.wrapping_add(op.len as u64);
        let result = (op.run)(self, op);
        match result {
            Ok(_) => self.wrap_rip(),
            Err(fault) if fault.is_leave() => {}
            Err(_) => self.regs.r[RIP] = linear,
        }
        result
    }

    fn leave_with(&mut self, fault: Fault) -> u64 {
        self.jit.fault = Some(fault);
        verdict::LEAVE
    }

    /// An access of two pages. What is read from known ones is put together where the instruction finds it; all
    /// else is for the handler.
    fn access_across(&mut self, site: Site, linear: u64) -> u64 {
        if !site.writes() {
            let mut bytes = [0; size_of::<Bytes>()];
            if self.read_known_across(linear, &mut bytes[..site.len()], self.mode.data) {
                self.jit.across = Bytes(bytes);
                return &raw const self.jit.across as u64;
            }
        }
        self.counts.slow_instructions.add();
        self.interpret_site()
    }

    /// Makes something of how a guess has done since its count began: in so many host cycles, and whether it
    /// began with the noted site. The count begins anew.
    fn learn_of_guess(&mut self, experience: impl FnOnce(u64, bool) -> Option<Experience>) -> u64 {
        let (site, mmu) = (Site(self.jit.site), self.mode.data);
        if let Some(id) = self.jit.known_page(mmu, self.jit.page) {
            let number = (self.jit.guess & 0xffff) as usize / size_of::<Guess>();
            let access = page_of(id) | site.offset();
            // SAFETY: reads the time-stamp counter.
            let now = unsafe { std::arch::x86_64::_rdtsc() };
            let bank = &mut self.tlb.guesses[mmu as usize][site.writes() as usize];
            let (cycles, same) = bank.count_anew(number, now, access);
            if let Some(experience) = experience(cycles, same)
                && self.vm.code.learn(access, experience)
            {
                bank.ask_seldom(number);
            }
        }
        verdict::DONE
    }

    fn access(&mut self, linear: u64) -> u64 {
        let site = Site(self.jit.site);
        if site.aligned() && !linear.is_multiple_of(site.len() as u64) {
            return self.interpret_site();
        }
        // Beyond the limit of flat segments comes nothing, and that is looked at before pages are.
        if !self.mode.is_64() && linear + site.len() as u64 > 1 << 32 {
            return self.interpret_site();
        }
        if crosses(linear, site.len()) {
            return self.access_across(site, linear);
        }
        let flushes = self.tlb.flushes();
        let host = match site.writes() {
            true => self.host_for_write(linear, site.len()).map(|ptr| ptr.map(|ptr| ptr as u64)),
            false => self.host_for_read(linear, site.len()).map(|ptr| ptr.map(|ptr| ptr as u64)),
        };
        match host {
            // The trace relies on what it checked before.
            Ok(Some(_)) if site.has_guesses() && self.tlb.flushes() != flushes => {
                self.interpret_site_since(flushes)
            }
            Ok(Some(host)) => host,
            Ok(None) => {
                self.counts.slow_instructions.add();
                self.interpret_site()
            }
            // An address that is not canonical: #SS for a stack access, which the handler knows.
            Err(Fault::GP0) => self.interpret_site(),
            Err(fault) => {
                self.settle();
                self.leave_with(fault)
            }
        }
    }
}

/// The slow way of a memory access at `linear`; called by translated code.
///
/// # Safety
/// `cpu` is the vCPU whose translated code calls, with the host's registers saved in it.
pub(super) unsafe extern "sysv64" fn slow_access(cpu: *mut Cpu, linear: u64) -> u64 {
    // SAFETY: by the caller; while translated code runs nothing else uses the vCPU.
    let cpu = unsafe { &mut *cpu };
    cpu.vm.counters.slow_accesses.add();
    if let Some(trace) = &cpu.vm.options.trace {
        cpu.trace_slow_access(trace, cpu.site_address(), linear);
    }
    cpu.access(linear)
}

/// Executes the instruction of the noted site; called by translated code.
///
/// # Safety
/// As for [`slow_access`].
pub(super) unsafe extern "sysv64" fn callout(cpu: *mut Cpu) -> u64 {
    // SAFETY: by the caller.
    let cpu = unsafe { &mut *cpu };
    cpu.vm.counters.callouts.add();
    if let Some(trace) = &cpu.vm.options.trace {
        cpu.trace_callout(trace, cpu.site_address());
    }
    cpu.interpret_site()
}

/// Executes the instruction of the noted site, which ends the trace; jumped to by translated code.
///
/// # Safety
/// As for [`slow_access`].
pub(super) unsafe extern "sysv64" fn hand(cpu: *mut Cpu) -> u64 {
    // SAFETY: by the caller.
    let cpu = unsafe { &mut *cpu };
    cpu.vm.counters.callouts.add();
    cpu.hand_over()
}

/// Enters the page of `linear`, for the noted site's direction, in the soft TLB if that takes no look at the page
/// tables: 1 if it is there now. Called by translated code.
///
/// # Safety
/// As for [`slow_access`].
pub(super) unsafe extern "sysv64" fn enter_known_page(cpu: *mut Cpu, linear: u64) -> u64 {
    // SAFETY: by the caller.
    let cpu = unsafe { &mut *cpu };
    let access = if Site(cpu.jit.site).writes() { Access::Write } else { Access::Read };
    cpu.enter_known_page(linear, access) as u64
}

/// Looks at how often a guess is wrong, after it was so [`MISSES`](crate::mmu::guess::MISSES) times; called by
/// translated code.
///
/// # Safety
/// As for [`slow_access`].
pub(super) unsafe extern "sysv64" fn guessed_wrong(cpu: *mut Cpu) -> u64 {
    // SAFETY: by the caller.
    let cpu = unsafe { &mut *cpu };
    cpu.learn_of_guess(|cycles, own| Some(Experience::Wrong { cycles, own }))
}

/// Hears that a guess was made as often as it is counted; called by translated code.
///
/// # Safety
/// As for [`slow_access`].
pub(super) unsafe extern "sysv64" fn guessed_enough(cpu: *mut Cpu) -> u64 {
    // SAFETY: by the caller.
    let cpu = unsafe { &mut *cpu };
    cpu.learn_of_guess(|_, own| own.then_some(Experience::Right))
}

/// Goes on after the guest's state was put in order in the vCPU: the address of translated code for it,
/// or 0 when the loop outside has something to do. Called by the routine that leaves translated code.
///
/// # Safety
/// As for [`slow_access`].
pub(super) unsafe extern "sysv64" fn resume(cpu: *mut Cpu) -> u64 {
    // SAFETY: by the caller.
    let cpu = unsafe { &mut *cpu };
    cpu.left_translated();
    cpu.resume().unwrap_or(0)
}

/// Prepares the zeroed state of a new vCPU.
///
/// # Safety
/// `jit` is writable; nobody else uses it.
pub(crate) unsafe fn initialise(jit: *mut JitState, signals: *const Signals, cpu: *mut Cpu) {
    // SAFETY: by the caller. `fault` is the one field for which zeroes need not be a value.
    let jit = unsafe {
        (&raw mut (*jit).fault).write(None);
        &mut *jit
    };
    jit.signals = signals;
    jit.cpu = cpu;
    jit.host_mxcsr = 0x1f80;
    jit.exit = NO_EXIT;
    jit.forget_pages();
}

/// Points GS of this thread at the vCPU, so that translated code finds it.
pub(crate) fn use_vcpu(cpu: *mut Cpu) -> std::io::Result<()> {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: sets the GS base of this thread, which nothing else in the process uses.
    match unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, cpu) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
