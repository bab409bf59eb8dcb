//! Lock-step: every trace executes twice on the same state, translated and interpreted, and the results
//! are compared.
//!
//! ```text
//! state ──┬── translated ──> registers, written bytes ──┐
//!         │        (written bytes are put back)         ├── compare ──> go on from the interpreter's
//!         └── interpreted, to the same address ─────────┘           or fail with a report
//! ```
//!
//! Both executions are *guarded*: what they write to RAM is noted with what was there before, and they
//! stop before an instruction that meets a device or watched code, or that changes more than registers and RAM,
//! which then executes once, interpreted.
//! Traces do not go on into each other. One vCPU executes at a time; a device may still write to memory
//! in between, so a difference counts only if it is there again at the next try.
//!
//! A branch to an address that is not canonical faults at its target in translated code, not at the
//! branch as it should; that is known and let pass.
//!
//! Not compared are flags that the manual leaves undefined, and status flags that nothing can read before
//! they are overwritten, since translated code does not keep those.

mod dead;
mod guard;
mod report;
#[cfg(test)]
mod tests;
mod turns;

pub(crate) use guard::Guard;
pub(crate) use turns::Turns;

use crate::block::arena::BlockRef;
use crate::block::cache::Known;
use crate::block::{Block, Flow};
use crate::cpu::Cpu;
use crate::fault::{Fault, Result};
use crate::jit::liveness;
use crate::jit::state::NO_EXIT;
use crate::jit::way;
use crate::jit::{key_of, page_of};
use crate::regs::{RIP, Regs};
use crate::signals::signal;
use cpu::VmExit;
use guard::Written;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, RflagsBits};
use std::collections::VecDeque;
use x86::reg::{dr7, rflags};

/// How often a trace is compared before a difference counts.
const TRIES: usize = 5;
/// Most instructions that are interpreted to reach the end of a trace; of one that loops, more, and then it
/// is left uncompared.
const INSTRUCTIONS_MAX: u64 = 10_000;
const LOOP_INSTRUCTIONS_MAX: u64 = 3_000_000;
/// Instructions kept for the report.
const HISTORY: usize = 80;

/// What one of the two executions came to.
struct End {
    regs: Regs,
    /// The fault, and the linear address if it is a page fault.
    fault: Option<(Fault, u64)>,
    written: Written,
}

/// What following with the interpreter came to.
enum Followed {
    Same,
    /// Something read what the manual leaves undefined.
    Uncertain,
    Different(Box<Difference>),
    /// A branch to an address that is not canonical: the interpreter has the fault at the branch, translated
    /// code, which does not look, at its target.
    WildBranch(Fault),
}

/// The interpreter's end, where it does not agree.
struct Difference {
    why: String,
    end: End,
    /// Status flags that were compared.
    flags: u64,
    instructions: Vec<(u64, Instruction)>,
}

impl Cpu {
    /// Executes some code: a trace in lock-step, anything else interpreted.
    #[cold]
    pub(crate) fn advance_in_lockstep(&mut self) {
        let vm = self.vm.clone();
        let Some(_turn) = vm.turns.take(self) else { return };
        let watched = self.sys.dr7 & dr7::ENABLES != 0 && self.has_breakpoints();
        if watched || self.shadow || self.regs.flag(rflags::TF) {
            return self.step_single(watched);
        }
        if self.may_translate() {
            match self.compare_trace() {
                Ok(true) => return,
                Ok(false) => {}
                Err(fault) => return self.raise(fault),
            }
        }
        self.step();
    }

    /// Executes the trace at the present instruction twice; false when there is none or it does nothing.
    pub(crate) fn compare_trace(&mut self) -> Result<bool> {
        let linear = self.regs.r[RIP];
        let key = self.key_at(linear);
        let known = match self.blocks.translated(linear, key) {
            Known::Nothing => self.find_translation(linear, key)?,
            known => known,
        };
        let Known::Code(code, id) = known else { return Ok(false) };
        let gpa = page_of(id) | linear & 0xfff;
        let loops = self.vm.code.cache().find(gpa, key).is_some_and(|found| found.loops);
        let start = self.regs.clone();
        let mut first = None;
        let mut ended_early = 0;
        let mut attempt = 0;
        while attempt < TRIES {
            self.jit.note_page(self.mode.data, linear & !0xfff, id);
            let translated = self.translated_end(code);
            self.regs = start.clone();
            if translated.is_nothing(&start) {
                if self.signals.take(signal::TURN) != 0 && ended_early < TRIES {
                    // The end of long loops was asked for just when the trace began.
                    ended_early += 1;
                    continue;
                }
                // It may have asked to go on with care.
                return if self.jit.careful != 0 && !key.careful() {
                    self.compare_trace()
                } else {
                    Ok(false)
                };
            }
            self.guard.begin();
            // The first time without noting what is only wanted when there is a difference.
            let followed = self.follow(&translated, loops, attempt > 0);
            self.signals.take(signal::TURN);
            match followed {
                Followed::WildBranch(fault) => {
                    self.guard.end();
                    return Err(fault);
                }
                Followed::Different(difference) => {
                    self.guard.undo_to(0);
                    self.guard.end();
                    self.regs = start.clone();
                    // What was interpreted beyond the trace may have changed flags that the mode hangs on.
                    self.update_mode();
                    self.shadow = false;
                    if attempt > 0 {
                        first.get_or_insert((translated, difference));
                    }
                    attempt += 1;
                }
                followed => {
                    self.guard.end();
                    if first.is_some() {
                        self.counts.lockstep_races.add();
                    }
                    if matches!(followed, Followed::Uncertain) {
                        self.counts.lockstep_uncertain.add();
                    }
                    self.counts.lockstep_traces.add();
                    return match translated.fault {
                        Some((fault, address)) => {
                            self.fault_address = address;
                            Err(fault)
                        }
                        None => Ok(true),
                    };
                }
            }
        }
        let (translated, difference) = first.expect("every try differed");
        self.failure = Some(self.report_difference(&start, &translated, &difference, key));
        self.exit = Some(VmExit::Kicked);
        Ok(true)
    }

    /// Executes the trace translated, and puts memory back.
    fn translated_end(&mut self, code: u64) -> End {
        self.guard.begin();
        self.jit.exit = NO_EXIT;
        self.prepare_entry();
        self.enter_translated(code);
        // What asks for care goes on with it; it does not ask again.
        while self.jit.careful != 0 && self.jit.fault.is_none() {
            let linear = self.regs.r[RIP];
            let key = self.key_at(linear);
            let Ok(Known::Code(code, id)) = self.find_translation(linear, key) else { break };
            self.jit.note_page(self.mode.data, linear & !0xfff, id);
            self.prepare_entry();
            self.enter_translated(code);
        }
        self.jit.exit = NO_EXIT;
        let fault = self.take_translated_fault().err().map(|fault| (fault, self.fault_address));
        self.code_modified = false;
        let written = self.guard.written();
        self.guard.undo_to(0);
        self.guard.end();
        End { regs: self.regs.clone(), fault, written }
    }

    /// Interprets until the state is that at the end of the translated execution. The guard has begun.
    fn follow(&mut self, wanted: &End, loops: bool, careful: bool) -> Followed {
        let mut follower = Follower { careful, ..Follower::default() };
        let mut first: Option<Box<Difference>> = None;
        loop {
            if self.regs.r[RIP] == wanted.regs.r[RIP] && wanted.fault.is_none() && follower.count > 0 {
                match self.difference(wanted, None, &follower) {
                    None => return follower.verdict(),
                    // A trace that loops may come here again.
                    Some(difference) => _ = first.get_or_insert(difference),
                }
            }
            let stop = match self.interpret_one(&mut follower) {
                _ if self.guard.blocked() => {
                    Some("the interpreter met a device, watched code or a system instruction")
                }
                Ok(()) if loops && follower.count >= LOOP_INSTRUCTIONS_MAX => return Followed::Uncertain,
                Ok(()) if !loops && follower.count >= INSTRUCTIONS_MAX => {
                    Some("the interpreter did not get there")
                }
                Ok(()) => None,
                Err(fault) => {
                    if fault == Fault::GP0 && !x86::paging::is_canonical(wanted.regs.r[RIP]) {
                        return Followed::WildBranch(fault);
                    }
                    let fault = (fault, self.fault_address);
                    follower.undefined = follower.undefined_before;
                    return match self.difference(wanted, Some(fault), &follower) {
                        None => follower.verdict(),
                        Some(_) if follower.uncertain => Followed::Uncertain,
                        Some(difference) => Followed::Different(first.unwrap_or(difference)),
                    };
                }
            };
            if let Some(why) = stop {
                if follower.uncertain {
                    return Followed::Uncertain;
                }
                return Followed::Different(
                    first.unwrap_or_else(|| self.here(why, None, rflags::STATUS, &follower)),
                );
            }
        }
    }

    /// Interprets one instruction (or some iterations of a repeated one).
    fn interpret_one(&mut self, follower: &mut Follower) -> Result<()> {
        let rip = self.regs.r[RIP];
        let (block, index) = match follower.next.take() {
            Some((block, index, at)) if at == rip => (block, index),
            _ => (self.find_block(rip)?, 0),
        };
        let op = &block.ops()[index];
        // Beyond the end of the trace, where the interpreter only gets if the two differ.
        if op.detail.is_some() && way::is_done_once(&self.vm, op.insn(), key_of(self)) && self.guard.blocks()
        {
            return Ok(());
        }
        follower.count += 1;
        if follower.careful {
            follower.note(rip, &self.instruction_at(&block, index));
        }
        self.counts.lockstep_instructions.add();
        self.shadow = false;
        let next = rip.wrapping_add(op.len as u64);
        self.regs.r[RIP] = next;
        let result = (op.run)(self, op);
        self.code_modified = false;
        match result {
            Ok(Flow::Next) if index + 1 < block.ops().len() => {
                follower.next = Some((block.clone(), index + 1, next));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(fault) => {
                self.regs.r[RIP] = rip;
                Err(fault)
            }
        }
    }

    /// An instruction of a block, decoded as if the block's page stood at 0.
    fn instruction_at(&self, block: &Block, index: usize) -> Instruction {
        let op = &block.ops()[index];
        let gpa = block.gpa + op.offset as u64;
        let mut bytes = [0u8; 15];
        let here = (0x1000 - (gpa & 0xfff)).min(op.len as u64) as usize;
        self.copy_ram(gpa, &mut bytes[..here]);
        if let Some(second) = block.second_page {
            self.copy_ram(second, &mut bytes[here..op.len as usize]);
        }
        let ip = gpa & 0xfff;
        let bits = self.mode.code_bits as u32;
        Decoder::with_ip(bits, &bytes[..op.len as usize], ip, DecoderOptions::NONE).decode()
    }

    /// Reads bytes of one page of RAM.
    pub(super) fn copy_ram(&self, gpa: u64, bytes: &mut [u8]) {
        if let Some(page) = self.ram.host_page(gpa) {
            let offset = (gpa & 0xfff) as usize;
            let len = bytes.len().min(0x1000 - offset);
            // SAFETY: inside one page of RAM.
            unsafe { std::ptr::copy(page.ptr.add(offset), bytes.as_mut_ptr(), len) };
        }
    }

    /// How the present state differs from a translated execution's end, if it does.
    fn difference(
        &mut self,
        wanted: &End,
        fault: Option<(Fault, u64)>,
        follower: &Follower,
    ) -> Option<Box<Difference>> {
        let mut flags = rflags::STATUS;
        if (self.regs.rflags ^ wanted.regs.rflags) & flags != 0 {
            flags &= !follower.undefined();
            if !self.vm.options.exact_flags {
                flags &= self.flags_that_matter(wanted.regs.r[RIP]);
            }
        }
        let equal = fault.map(|(fault, _)| fault) == wanted.fault.map(|(fault, _)| fault)
            && self.regs.agrees(&wanted.regs, flags)
            && self.guard.same_bytes(&wanted.written);
        if equal { None } else { Some(self.here("the ends differ", fault, flags, follower)) }
    }

    fn here(
        &self,
        why: &str,
        fault: Option<(Fault, u64)>,
        flags: u64,
        follower: &Follower,
    ) -> Box<Difference> {
        Box::new(Difference {
            why: why.into(),
            end: End { regs: self.regs.clone(), fault, written: self.guard.written() },
            flags,
            instructions: follower.history.iter().copied().collect(),
        })
    }
}

impl End {
    /// Whether no instruction was executed, or none that left a mark but in status flags (which a look for
    /// requests may spoil).
    fn is_nothing(&self, start: &Regs) -> bool {
        self.fault.is_none()
            && self.written.values().all(|(old, new)| old == new)
            && self.regs.agrees(start, 0)
    }
}

impl Regs {
    /// Whether everything is equal but the status flags outside `flags`.
    fn agrees(&self, other: &Regs, flags: u64) -> bool {
        let mask = !rflags::STATUS | flags;
        self.r == other.r
            && self.rflags & mask == other.rflags & mask
            && self.mxcsr == other.mxcsr
            && self.ymm == other.ymm
            // Between the two is MXCSR's place, which counts only while an image is made.
            && self.fx[..24] == other.fx[..24]
            && self.fx[32..160] == other.fx[32..160]
            && self.seg == other.seg
    }
}

/// Keeps account of the instructions that the interpreter executes.
#[derive(Default)]
struct Follower {
    count: u64,
    /// The rest is kept.
    careful: bool,
    /// Flags that the manual leaves undefined now, as `RflagsBits`.
    undefined: u32,
    /// Those before the last instruction, which count when it faults.
    undefined_before: u32,
    /// An instruction has read one of them, or something that nobody can know.
    uncertain: bool,
    /// Where the block goes on: block, index, linear address.
    next: Option<(BlockRef, usize, u64)>,
    history: VecDeque<(u64, Instruction)>,
}

impl Follower {
    fn note(&mut self, rip: u64, insn: &Instruction) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((rip, *insn));
        self.uncertain |= insn.rflags_read() & self.undefined != 0
            || matches!(insn.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed)
            // Pushes all of them.
            || matches!(insn.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq) && self.undefined != 0;
        self.undefined_before = self.undefined;
        // A shift by CL may leave all flags alone, undefined ones too.
        let certain =
            (insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set()) & liveness::overwritten(insn);
        self.undefined = self.undefined & !certain | insn.rflags_undefined();
    }

    /// The status flags that are undefined now, as in RFLAGS.
    fn undefined(&self) -> u64 {
        let pairs = [
            (RflagsBits::CF, rflags::CF),
            (RflagsBits::PF, rflags::PF),
            (RflagsBits::AF, rflags::AF),
            (RflagsBits::ZF, rflags::ZF),
            (RflagsBits::SF, rflags::SF),
            (RflagsBits::OF, rflags::OF),
        ];
        pairs.iter().filter(|(iced, _)| self.undefined & iced != 0).map(|(_, flag)| flag).sum()
    }

    fn verdict(&self) -> Followed {
        if self.uncertain { Followed::Uncertain } else { Followed::Same }
    }
}
