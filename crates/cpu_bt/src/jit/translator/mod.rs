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
mod stack;
mod system;

use super::FRAMES;
use super::cache::{Exit, Key, Translation};
use super::emit::{Emit, Label, host};
use super::groups::{self, Groups};
use super::liveness;
use super::mapping::Mapping;
use super::state::Site;
use super::strings;
use super::stubs::{Stubs, jit};
use super::trace::{Step, Trace};
use super::way::Way;
use crate::cpu::Cpu;
use crate::mmu::tlb::MmuIndex;
use cold::Cold;
use iced_x86::{Encoder, Mnemonic as M};
use std::time::Instant;

impl Cpu {
    /// Translates the trace that begins at physical address `gpa`; returns its verified entry.
    pub(crate) fn translate_trace(&mut self, gpa: u64, key: Key) -> Option<u64> {
        if gpa >> 12 >= FRAMES || !self.prepare_code_cache() {
            return None;
        }
        let begun = Instant::now();
        self.watch_code_page(gpa);
        let page = self.ram.code_page(gpa)?;
        let vm = self.vm.clone();
        let mut cache = vm.code.cache();
        if cache.emptying || cache.is_full() {
            return None;
        }
        if let Some(found) = cache.find(gpa, key) {
            return Some(found.verified);
        }
        // Every line of the page counts as code until it is known which are: a write after this finds
        // the lock held and, later, the translation.
        let mut bytes = [0u8; 4096];
        // SAFETY: a page of RAM. Who writes it meanwhile reports it, and voids what is made here.
        unsafe { std::ptr::copy(page.ptr, bytes.as_mut_ptr(), 4096) };
        let trace = self.collect(&bytes, (gpa & 0xfff) as u16, key);
        if trace.steps.is_empty() {
            return None;
        }
        vm.code.add_lines(gpa, trace.lines);
        let (code, exits, translation) = {
            let first_exit = cache.next_exit();
            let mut translator = Translator::new(cache.next(), cache.stubs, key, gpa, first_exit);
            translator.exact_flags = vm.options.exact_flags;
            // A kernel runs much code once between two flushes: guesses of many places would not pay.
            if !key.careful() && key.mmu() == MmuIndex::User {
                translator.groups = groups::find(&trace.steps);
                translator.guess_numbers = cache.guesses_for(&mut translator.groups, gpa);
            }
            translator.trace(&trace);
            let Translator { e, exits, entries, .. } = translator;
            let [direct, verified, forward, depart] = entries.map(|label| e.address(label));
            let code = e.finish();
            let len = (code.len() as u64 - (verified - cache.next())) as u32;
            let (lines, loops) = (trace.lines, trace.loops);
            let translation = Translation { gpa, key, direct, verified, forward, depart, lines, len, loops };
            (code, exits, translation)
        };
        if let Some(told) = &vm.options.trace {
            let linear = self.regs.r[crate::regs::RIP];
            let mut instructions = trace.steps.iter().map(|step| step.insn);
            let host = (translation.verified, &code[code.len() - translation.len as usize..]);
            self.trace_translation(told, (linear, gpa, key), &mut instructions, host);
        }
        let verified = translation.verified;
        cache.add(translation, &code, exits);
        vm.counters.translation_nanoseconds.add_many(begun.elapsed().as_nanos() as u64);
        vm.counters.translations.add();
        vm.counters.translated_instructions.add_many(trace.steps.len() as u64);
        Some(verified)
    }
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
    /// After the mapping is set up: where loops go back to.
    body: Label,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    first_exit: u32,
    encoder: Encoder,
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
    /// STI stands in the trace: what comes behind it has to look for interrupts.
    looks_next: bool,
    /// By offset in the page, where the careful translation is gone on in.
    careful_exits: Vec<(u16, Label)>,
}

impl Translator {
    fn new(base: u64, stubs: Stubs, key: Key, gpa: u64, first_exit: u32) -> Translator {
        let mut e = Emit::new(base);
        let entries = [e.label(), e.label(), e.label(), e.label()];
        let body = e.label();
        Translator {
            e,
            stubs,
            key,
            head_key: key,
            gpa,
            mapping: Mapping::CANONICAL,
            entries,
            body,
            cold: Vec::new(),
            exits: Vec::new(),
            first_exit,
            encoder: Encoder::new(64),
            head_live: liveness::ALL,
            exact_flags: false,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            groups: Groups::default(),
            guess_numbers: Vec::new(),
            at: 0,
            held: None,
            looks_next: false,
            careful_exits: Vec::new(),
        }
    }

    fn trace(&mut self, trace: &Trace) {
        let head = trace.steps[0].offset;
        self.head_live = trace.live;
        self.mapping = self.choose_mapping(trace);
        self.prologue(trace, head);
        let mut ended = false;
        for (index, step) in trace.steps.iter().enumerate() {
            self.at = index;
            self.checks(step);
            ended = self.step(step, head);
        }
        if !ended {
            self.branch(trace.end, head);
        }
        self.emit_cold(head);
    }

    fn save_flags(&mut self) {
        self.e.gs_store(jit!(saved_rax), host::RAX);
        self.e.flags_to_ax();
    }

    fn restore_flags(&mut self) {
        self.e.flags_from_ax();
        self.e.gs_load(host::RAX, jit!(saved_rax));
    }

    /// Emits one instruction; true when the trace has ended with it.
    fn step(&mut self, step: &Step, head: u16) -> bool {
        match step.way {
            Way::Nothing | Way::Depart => false,
            Way::Callout => {
                self.callout(step);
                false
            }
            Way::Hand => {
                self.hand(step);
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
        let site = Site::new(step.offset, self.mapping, 1, false, false);
        self.e.gs_store_imm32(jit!(site), site.0);
        self.e.call_to(self.stubs.callout);
        self.held = None;
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
    fn hand(&mut self, step: &Step) {
        let site = Site::new(step.offset, self.mapping, 1, false, false);
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
            M::Vzeroupper => self.e.bytes(&[0xc5, 0xf8, 0x77]),
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
