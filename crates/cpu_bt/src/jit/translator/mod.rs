//! From a hot block to a trace of host code.
//!
//! Each family of instructions has its file: [`native`] re-encodes, [`lookup`] finds memory operands,
//! [`stack`] pushes and pops, [`branch`] leaves and links, [`system`] does what the supervisor needs
//! often. [`head`] is the way in, [`cold`] what stands behind the trace.

mod branch;
mod cold;
mod divide;
mod head;
mod lookup;
mod native;
mod registers;
mod single_string;
#[cfg(test)]
pub(super) use native::set_operand;
#[cfg(test)]
pub(super) use registers::host_register;
mod stack;
mod system;

use super::FRAMES;
use super::cache::{Exit, Key, SECOND_LINES, Translation};
use super::emit::{self, Emit, Label, host};
use super::groups::{self, Groups};
use super::liveness;
use super::mapping::{Mapping, S0};
use super::state::Site;
use super::strings;
use super::stubs::{Stubs, jit};
use super::trace::{Step, Trace, changes_addresses};
use super::way::Way;
use crate::block::decode::INSTRUCTION_LEN_MAX;
use crate::cpu::Cpu;
use crate::mmu::tlb::MmuIndex;
use cold::Cold;
use iced_x86::{Encoder, Mnemonic as M};
use std::time::Instant;

impl Cpu {
    /// Translates the trace that begins at physical address `gpa`; returns its verified entry. `second` is the
    /// page in which the first instruction ends, if that is another one.
    pub(crate) fn translate_trace(&mut self, gpa: u64, second: Option<u64>, key: Key) -> Option<u64> {
        let beyond = |gpa: u64| gpa >> 12 >= FRAMES;
        if beyond(gpa) || second.is_some_and(beyond) || !self.prepare_code_cache() {
            return None;
        }
        let begun = Instant::now();
        self.watch_code_page(gpa);
        let page = self.ram.code_page(gpa)?;
        let second_page = match second {
            Some(second) => {
                self.watch_code_page(second);
                Some(self.ram.code_page(second)?)
            }
            None => None,
        };
        let read = || {
            let mut bytes = [0u8; 4096 + INSTRUCTION_LEN_MAX];
            // SAFETY: a page of RAM. Who writes it meanwhile is noticed below.
            unsafe { std::ptr::copy(page.ptr, bytes.as_mut_ptr(), 4096) };
            if let Some(second) = &second_page {
                // SAFETY: as above.
                unsafe { std::ptr::copy(second.ptr, bytes[4096..].as_mut_ptr(), INSTRUCTION_LEN_MAX) };
            }
            bytes
        };
        let len = if second.is_some() { 4096 + INSTRUCTION_LEN_MAX } else { 4096 };
        // What can be done without the lock, for which other vCPUs may be waiting.
        let steps = std::mem::take(&mut self.kinds.steps);
        let bytes = read();
        let mut trace = self.collect(&bytes[..len], (gpa & 0xfff) as u16, key, steps);
        let vm = self.vm.clone();
        let mut cache = vm.code.cache();
        if cache.emptying || cache.is_full() {
            return None;
        }
        if let Some(found) = cache.find(gpa, key) {
            self.kinds.steps = trace.steps;
            return Some(found.verified);
        }
        // Every line of the page counts as code until it is known which are: a write after this finds
        // the lock held and, later, the translation. One before has changed what was read.
        let same = |at: *const u8, bytes: &[u8]| {
            // SAFETY: so many bytes of a page of RAM, as above.
            unsafe { libc::memcmp(at.cast(), bytes.as_ptr().cast(), bytes.len()) == 0 }
        };
        let (first, rest) = bytes.split_at(4096);
        if !same(page.ptr, first) || second_page.is_some_and(|second| !same(second.ptr, rest)) {
            trace = self.collect(&read()[..len], (gpa & 0xfff) as u16, key, trace.steps);
        }
        if trace.steps.is_empty() {
            return None;
        }
        let buffers = std::mem::take(&mut cache.buffers);
        vm.code.add_lines(gpa, trace.lines);
        if let Some(second) = second {
            vm.code.add_lines(second, SECOND_LINES);
        }
        let second = second.map(|second| second >> 12);
        let first_exit = cache.next_exit();
        let mut translator = Translator::new(cache.next(), cache.stubs, key, gpa, first_exit, buffers);
        translator.exact_flags = vm.options.exact_flags;
        translator.second = second;
        // Sums of 32 bits wrap around, so nothing follows from one for another.
        if !key.careful() && !key.compat() {
            // A kernel runs much code once between two flushes: guesses of many places would pay in loops only.
            let stack_only = key.mmu() != MmuIndex::User && !trace.loops;
            groups::find(&mut translator.groups, &trace.steps, stack_only);
            cache.guesses_for(&mut translator.groups, gpa, &mut translator.guess_numbers);
        }
        translator.trace(&trace);
        let e = &mut translator.e;
        let [direct, verified, forward, depart] = translator.entries.map(|label| e.address(label));
        e.fill_in();
        let code = &e.code[..];
        let len = (code.len() as u64 - (verified - cache.next())) as u32;
        let (lines, loops) = (trace.lines, trace.loops);
        let translation =
            Translation { gpa, key, direct, verified, forward, depart, lines, second, len, loops };
        if let Some(told) = &vm.options.trace {
            let linear = self.regs.r[crate::regs::RIP];
            let mut instructions = trace.steps.iter().map(|step| step.insn);
            let host = (translation.verified, &code[code.len() - translation.len as usize..]);
            self.trace_translation(told, (linear, gpa, key), &mut instructions, host);
        }
        let verified = translation.verified;
        cache.add(translation, code, &translator.exits);
        let translated = trace.steps.len() as u64;
        cache.buffers = translator.into_buffers();
        drop(cache);
        self.kinds.steps = trace.steps;
        vm.counters.translation_nanoseconds.add_many(begun.elapsed().as_nanos() as u64);
        vm.counters.translations.add();
        vm.counters.translated_instructions.add_many(translated);
        Some(verified)
    }
}

/// Memory that each translation needs for a while.
#[derive(Default)]
pub(super) struct Buffers {
    emit: emit::Buffers,
    groups: Groups,
    guess_numbers: Vec<u32>,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    encoded: Vec<u8>,
}

struct Translator {
    e: Emit,
    stubs: Stubs,
    /// What the code being emitted depends on: STAC and CLAC change it.
    key: Key,
    head_key: Key,
    gpa: u64,
    mapping: Mapping,
    /// Direct, verified, forward, depart.
    entries: [Label; 4],
    /// Where loops go back to.
    turn: Label,
    /// There are such loops.
    loops: bool,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    first_exit: u32,
    encoder: Encoder,
    /// Bytes of the present instruction.
    encoded: Vec<u8>,
    head_live: u32,
    /// Flags are kept at every access.
    exact_flags: bool,
    bmi2: bool,
    /// Accesses that are checked together; none in a careful trace.
    groups: Groups,
    /// For each group the number of its guess.
    guess_numbers: Vec<u32>,
    /// Index of the present step.
    at: usize,
    /// The group whose addend is in S1.
    held: Option<u16>,
    /// Flags are in AX, and RAX in memory.
    flags_saved: bool,
    /// The group whose only access is at the host address in S0.
    found: Option<u16>,
    /// STI stands in the trace: what comes behind it has to look for interrupts.
    looks_next: bool,
    /// By offset in the page, where the careful translation is gone on in.
    careful_exits: Vec<(u16, Label)>,
    /// Frame number of the page in which the first instruction ends, if that is another one.
    second: Option<u64>,
}

impl Translator {
    fn new(base: u64, stubs: Stubs, key: Key, gpa: u64, first_exit: u32, buffers: Buffers) -> Translator {
        let Buffers { emit, mut groups, guess_numbers, mut cold, mut exits, encoded, .. } = buffers;
        groups.clear();
        cold.clear();
        exits.clear();
        let mut e = Emit::reusing(base, emit);
        let entries = [e.label(), e.label(), e.label(), e.label()];
        let turn = e.label();
        Translator {
            e,
            stubs,
            key,
            head_key: key,
            gpa,
            mapping: Mapping::CANONICAL,
            entries,
            turn,
            loops: false,
            cold,
            exits,
            first_exit,
            encoder: Encoder::new(64),
            encoded,
            head_live: liveness::ALL,
            exact_flags: false,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            groups,
            guess_numbers,
            at: 0,
            held: None,
            flags_saved: false,
            found: None,
            looks_next: false,
            careful_exits: Vec::new(),
            second: None,
        }
    }

    fn into_buffers(self) -> Buffers {
        let Translator { e, groups, guess_numbers, cold, exits, encoded, .. } = self;
        Buffers { emit: e.into_buffers(), groups, guess_numbers, cold, exits, encoded }
    }

    fn trace(&mut self, trace: &Trace) {
        let head = trace.steps[0].offset;
        // Before an instruction that ends in another page than expected, all flags may matter.
        self.head_live = if self.second.is_some() { liveness::ALL } else { trace.live };
        self.loops = trace.loops;
        self.mapping = self.choose_mapping(trace);
        self.prologue(trace, head);
        let mut ended = false;
        for (index, step) in trace.steps.iter().enumerate() {
            self.at = index;
            let after = self.e.label();
            if let Some(second) = self.second.filter(|_| index == 0) {
                self.verify_second_page(step, second);
            }
            self.checks(step);
            // What needs neither flags nor RAX leaves them where they are.
            if !step.leaves_flags_away || self.second.is_some() {
                self.restore_flags();
            }
            ended = self.step(step, head);
            self.e.bind(after);
        }
        self.restore_flags();
        if !ended {
            self.branch(trace.end, head);
        }
        self.emit_cold(head);
    }

    /// `to` = `from` + `distance`: an address of code from that of its page, or the reverse.
    fn add_to_page(&mut self, to: u8, from: u8, distance: i32) {
        match self.key.compat() {
            true => self.e.lea32_disp32(to, from, distance),
            false => self.e.lea_disp32(to, from, distance),
        }
    }

    /// Adds to the guest's stack pointer. Touches no flags.
    fn move_stack(&mut self, distance: i32) {
        self.e.lea(!self.key.compat(), host::R15, Some(host::R15), None, distance);
    }

    /// Puts the flags into AX, and RAX into memory, if they are not there.
    fn save_flags(&mut self) {
        if !self.flags_saved {
            self.e.gs_store(jit!(saved_rax), host::RAX);
            self.e.flags_to_ax();
            self.flags_saved = true;
        }
    }

    /// Puts them back, if they are there.
    fn restore_flags(&mut self) {
        if self.flags_saved {
            self.e.flags_from_ax();
            self.e.gs_load(host::RAX, jit!(saved_rax));
            self.flags_saved = false;
        }
    }

    /// The same where no flag matters.
    fn restore_rax(&mut self) {
        if self.flags_saved {
            self.e.gs_load(host::RAX, jit!(saved_rax));
            self.flags_saved = false;
        }
    }

    /// Emits one instruction; true when the trace has ended with it.
    fn step(&mut self, step: &Step, head: u16) -> bool {
        match step.way {
            Way::Nothing | Way::Depart => false,
            Way::Callout if changes_addresses(&step.insn) => {
                self.callout_at_end(step);
                true
            }
            Way::Callout => {
                self.callout(step);
                false
            }
            Way::Hand => {
                self.hand(Site::new(step.offset, self.mapping, 1, false, false));
                true
            }
            Way::Native => {
                self.native(step);
                false
            }
            Way::Special => self.special(step, head),
        }
    }

    fn callout(&mut self, step: &Step) {
        self.restore_flags();
        let site = Site::new(step.offset, self.mapping, 1, false, false);
        self.e.gs_store_imm32(jit!(site), site.0);
        self.e.call_to(self.stubs.callout);
        self.held = None;
    }

    /// An instruction after which the page may lead elsewhere: where it goes on is looked up.
    fn callout_at_end(&mut self, step: &Step) {
        self.restore_flags();
        let site = Site::new(step.offset, self.mapping, 1, false, false).ending();
        self.e.gs_store_imm32(jit!(site), site.0);
        self.e.call_to(self.stubs.callout);
        self.held = None;
        self.e.gs_load(S0, jit!(page));
        self.add_to_page(S0, S0, step.offset as i32 + step.insn.len() as i32);
        self.go_indirect();
    }

    /// REP MOVS and REP STOS: by a common routine, which knows when to call the handler.
    fn string(&mut self, step: &Step) {
        let kind = strings::Kind::of(&step.insn).expect("a repeated move or store");
        let site = Site::new(step.offset, self.mapping, 1, false, false);
        self.e.gs_store_imm32(jit!(site), site.0);
        self.e.call_to(self.stubs.strings.get(kind, self.key.mmu()));
        self.held = None;
    }

    /// Leaves for good: the instruction's handler says where the guest goes on.
    fn hand(&mut self, site: Site) {
        self.e.gs_store_imm32(jit!(site), site.0);
        self.e.jmp_to(self.stubs.hand);
    }

    /// Emits one of the hand-written; true when the trace has ended with it.
    fn special(&mut self, step: &Step, head: u16) -> bool {
        match step.insn.mnemonic() {
            M::Push => self.push(step),
            M::Pop => self.pop(step),
            M::Leave => self.leave(step),
            M::Cli => self.set_interrupts(step, false),
            M::Sti => self.set_interrupts(step, true),
            M::Pushfq => self.push_flags(step),
            M::Stac => self.set_access(step, true),
            M::Clac => self.set_access(step, false),
            M::Swapgs => self.swap_gs(),
            M::Mov => self.read_selector(step),
            M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => self.segment_base(step),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit_string(step),
            M::Vzeroupper => self.e.bytes(&[0xc5, 0xf8, 0x77]),
            _ if let Some(what) = strings::Single::of(&step.insn) => self.single_string(step, what),
            _ if strings::Kind::of(&step.insn).is_some() => self.string(step),
            M::Rdtsc => self.read_tsc(false),
            M::Rdtscp => self.read_tsc(true),
            M::Syscall | M::Sysretq => {
                self.system_call(step);
                return true;
            }
            _ => return self.branch_step(step, head),
        }
        false
    }
}
