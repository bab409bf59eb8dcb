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
use super::source::Source;
use super::state::{NO_EXIT, Site};
use super::strings;
use super::stubs::{Stubs, jit};
use super::trace::{Step, Trace, changes_addresses};
use super::way::{Kinds, Way};
use crate::cpu::Cpu;
use crate::mmu::tlb::MmuIndex;
use crate::vm::VmShared;
use cold::Cold;
use iced_x86::{Encoder, Mnemonic as M};
use std::time::Instant;

/// A trace that is worth to be translated.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// The physical address of its first instruction.
    gpa: u64,
    /// The page in which that ends, if it is another one.
    second: Option<u64>,
    key: Key,
    /// The versions of both pages since when they are watched.
    versions: [u32; 2],
}

/// What has come of a [`Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// The verified entry of the translation.
    Code(u64),
    /// Its bytes have changed meanwhile, or there is no room for it now.
    NotNow,
    /// It cannot be translated.
    Never,
}

/// Translates a trace. Holds the lock of the translations only to look something up and to publish.
/// `tell` hears of the trace and of its code at an address.
fn translate(vm: &VmShared, kinds: &mut Kinds, job: &Job, tell: impl FnOnce(&Trace, (u64, &[u8]))) -> Made {
    let begun = Instant::now();
    let Job { gpa, key, .. } = *job;
    let Some(mut source) = Source::new(&vm.ram, gpa, job.second, std::mem::take(&mut kinds.bytes)) else {
        return Made::Never;
    };
    let trace = kinds.collect(vm, &mut source, (gpa & 0xfff) as u16, key);
    let made = match trace.steps.is_empty() {
        false => make(vm, job, &source, &trace, tell),
        // Unless it was changed while it was looked at.
        true if source.is_same(source.lines()) => Made::Never,
        true => Made::NotNow,
    };
    if let (Made::Code(_), translated) = (made, trace.steps.len() as u64) {
        vm.counters.translation_nanoseconds.add_many(begun.elapsed().as_nanos() as u64);
        vm.counters.translations.add();
        vm.counters.translated_instructions.add_many(translated);
    }
    (kinds.steps, kinds.bytes) = (trace.steps, source.into_bytes());
    made
}

/// Makes the code of a trace and publishes it.
fn make(
    vm: &VmShared,
    job: &Job,
    source: &Source,
    trace: &Trace,
    tell: impl FnOnce(&Trace, (u64, &[u8])),
) -> Made {
    let Job { gpa, second, key, versions } = *job;
    // One at a time, for the place of the code is known before.
    let mut buffers = vm.code.buffers();
    let mut cache = vm.code.cache();
    if cache.emptying || cache.is_full() {
        return Made::NotNow;
    }
    if let Some(found) = cache.find(gpa, key) {
        return Made::Code(found.verified);
    }
    let place = cache.place();
    let mut translator =
        Translator::new(place.at, cache.stubs, key, gpa, place.exit, std::mem::take(&mut *buffers));
    translator.exact_flags = vm.options.exact_flags;
    translator.second = second.map(|second| second >> 12);
    // Sums of 32 bits wrap around, so nothing follows from one for another.
    let guesses = !key.careful() && !key.compat();
    if guesses {
        drop(cache);
        // A kernel runs much code once between two flushes: guesses of many places would pay in loops only.
        let stack_only = key.mmu() != MmuIndex::User && !trace.loops;
        groups::find(&mut translator.groups, &trace.steps, stack_only);
        cache = vm.code.cache();
        cache.guesses_for(&mut translator.groups, gpa, &mut translator.guess_numbers);
    }
    drop(cache);
    translator.trace(trace);
    let e = &mut translator.e;
    let [direct, verified, forward, depart] = translator.entries.map(|label| e.address(label));
    e.fill_in();
    let code = &e.code[..];
    let len = (code.len() as u64 - (verified - place.at)) as u32;
    let (lines, loops) = (trace.lines, trace.loops);
    let second_frame = translator.second;
    let translation = Translation {
        gpa,
        key,
        direct,
        verified,
        forward,
        depart,
        lines,
        second: second_frame,
        len,
        loops,
        linked: NO_EXIT,
    };
    let mut cache = vm.code.cache();
    let watched = |gpa: u64, version: u32| vm.code.version(gpa) == version;
    let holds = !cache.emptying
        && cache.place() == place
        && watched(gpa, versions[0])
        && second.is_none_or(|second| watched(second, versions[1]));
    let made = if holds {
        // First the lines are marked, then the bytes looked at: who writes them after that finds the lock held and,
        // later, the translation.
        vm.code.add_lines(gpa, lines);
        if let Some(second) = second {
            vm.code.add_lines(second, SECOND_LINES);
        }
        match source.is_same(lines) {
            true => {
                tell(trace, (verified, &code[code.len() - len as usize..]));
                cache.add(translation, code, &translator.exits);
                Made::Code(verified)
            }
            false => Made::NotNow,
        }
    } else {
        Made::NotNow
    };
    drop(cache);
    *buffers = translator.into_buffers();
    made
}

impl Cpu {
    /// Translates the trace that begins at physical address `gpa`. `second` is the page in which the first instruction
    /// ends, if that is another one.
    pub(crate) fn translate_trace(&mut self, gpa: u64, second: Option<u64>, key: Key) -> Made {
        let beyond = |gpa: u64| gpa >> 12 >= FRAMES;
        if beyond(gpa) || second.is_some_and(beyond) {
            return Made::Never;
        }
        if !self.prepare_code_cache() {
            return Made::NotNow;
        }
        let versions = [self.watch_code_page(gpa), second.map_or(0, |second| self.watch_code_page(second))];
        let job = Job { gpa, second, key, versions };
        let vm = self.vm.clone();
        let mut kinds = std::mem::take(&mut self.kinds);
        let made = translate(&vm, &mut kinds, &job, |trace, host| {
            if let Some(told) = &vm.options.trace {
                let linear = self.regs.r[crate::regs::RIP];
                let mut instructions = trace.steps.iter().map(|step| step.insn);
                self.trace_translation(told, (linear, gpa, key), &mut instructions, host);
            }
        });
        self.kinds = kinds;
        made
    }
}

/// Memory that each translation needs for a while.
#[derive(Default)]
pub(crate) struct Buffers {
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
