//! From a hot block to a trace of host code.

use super::cache::{Exit, Key, Translation};
use super::emit::{Emit, Label, cc, host};
use super::liveness;
use super::mapping::{Loc, Mapping, S0, S1, slot};
use super::state::{PAGES, Site};
use super::stubs::{Stubs, jit};
use super::{FRAMES, page_id};
use crate::block::decode::{Class, gpr_number};
use crate::cpu::Cpu;
use crate::interp::condition;
use crate::mmu::tlb::{Entry, MmuIndex, Tlb};
use crate::native;
use crate::native::classify::{Class as PlanClass, Memory, Plan};
use crate::regs::{RSP, Regs};
use crate::signals::signal;
use crate::vm::line_mask;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic as M, OpCodeOperandKind,
    OpKind, Register,
};
use std::mem::offset_of;
use x86::Segment;
use x86::reg::rflags;

/// Most instructions in a trace.
const INSTRUCTIONS_MAX: usize = 64;
/// How far ahead a branch target is searched for what it does to flags.
const PEEK_MAX: usize = 8;

/// How an instruction of a trace is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Re-encoded.
    Native,
    /// By its handler, then on.
    Callout,
    /// The trace ends before it; it is interpreted.
    Depart,
    /// A branch, push or pop: hand-written.
    Special,
    /// Nothing to do.
    Nothing,
}

/// One instruction of a trace.
struct Step {
    insn: Instruction,
    /// Offset in the page.
    offset: u16,
    way: Way,
    /// For native ones.
    plan: Option<Plan>,
    /// Flags that matter after it.
    live: u32,
}

struct Trace {
    steps: Vec<Step>,
    lines: u64,
    /// Where it goes after the last step, if that does not branch: offset in the page (or beyond).
    end: u64,
    simd: bool,
    /// Flags that matter at its head.
    live: u32,
    /// It branches back to its own head.
    loops: bool,
}

impl Cpu {
    /// Translates the trace that begins at physical address `gpa`; returns its verified entry.
    pub(crate) fn translate_trace(&mut self, gpa: u64, key: Key) -> Option<u64> {
        if gpa >> 12 >= FRAMES || !self.prepare_code_cache() {
            return None;
        }
        self.watch_code_page(gpa);
        let page = self.ram.host_page(gpa)?;
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
            translator.trace(&trace);
            let Translator { e, exits, entries, .. } = translator;
            let [direct, verified, depart] = entries.map(|label| e.address(label));
            let translation = Translation { gpa, key, direct, verified, depart, lines: trace.lines };
            (e.finish(), exits, translation)
        };
        let verified = translation.verified;
        cache.add(translation, &code, exits);
        vm.counters.translations.add();
        vm.counters.translated_instructions.add_many(trace.steps.len() as u64);
        Some(verified)
    }

    /// Follows the code from `start` on and decides how each instruction is done.
    fn collect(&mut self, page: &[u8; 4096], start: u16, key: Key) -> Trace {
        let mut trace = Trace {
            steps: Vec::new(),
            lines: 0,
            end: start as u64,
            simd: false,
            live: liveness::ALL,
            loops: false,
        };
        let mut decoder = Decoder::with_ip(64, page, 0, DecoderOptions::NONE);
        let mut at = start as u64;
        while trace.steps.len() < INSTRUCTIONS_MAX {
            trace.end = at;
            if at >= 4096 {
                break;
            }
            decoder.set_position(at as usize).expect("inside the page");
            decoder.set_ip(at);
            let insn = decoder.decode();
            if insn.is_invalid() {
                break;
            }
            let (way, plan) = self.way(&insn, key);
            if way == Way::Depart {
                break;
            }
            trace.lines |= line_mask(at, insn.len() as u64);
            trace.simd |=
                plan.as_ref().is_some_and(|plan| matches!(plan.class, PlanClass::Sse | PlanClass::Avx));
            let offset = at as u16;
            at += insn.len() as u64;
            trace.end = at;
            let flow = insn.flow_control();
            let target = insn.near_branch_target();
            let branches = flow != FlowControl::Next && way == Way::Special;
            trace.steps.push(Step { insn, offset, way, plan, live: liveness::ALL });
            if !branches {
                continue;
            }
            match flow {
                FlowControl::ConditionalBranch => trace.loops |= target == start as u64,
                FlowControl::UnconditionalBranch
                    if target < 4096 && !trace.steps.iter().any(|step| step.offset as u64 == target) =>
                {
                    // Go on at the target; the jump itself needs no code.
                    trace.steps.last_mut().expect("just pushed").way = Way::Nothing;
                    at = target;
                    trace.end = target;
                }
                _ => {
                    trace.loops |= flow == FlowControl::UnconditionalBranch && target == start as u64;
                    break;
                }
            }
        }
        // STI holds interrupts off for one instruction more, so that has to be in the trace too.
        while let Some(last) = trace.steps.last()
            && last.insn.mnemonic() == M::Sti
        {
            trace.end = last.offset as u64;
            trace.steps.pop();
        }
        // Twice: what matters at the head is known only after the first time.
        let mut at_head = liveness::ALL;
        for _ in 0..2 {
            let mut live = live_at(page, trace.end, start, at_head);
            for index in (0..trace.steps.len()).rev() {
                let step = &mut trace.steps[index];
                if step.way == Way::Special && step.insn.is_jcc_short_or_near() {
                    live |= live_at(page, step.insn.near_branch_target(), start, at_head);
                } else if step.way == Way::Special && step.insn.flow_control() != FlowControl::Next {
                    live = match step.insn.flow_control() {
                        FlowControl::UnconditionalBranch | FlowControl::Call => {
                            live_at(page, step.insn.near_branch_target(), start, at_head)
                        }
                        _ => liveness::ALL,
                    };
                }
                step.live = live;
                live = liveness::before(&step.insn, live);
            }
            at_head = live;
            trace.live = live;
        }
        trace
    }

    /// How an instruction is done.
    fn way(&mut self, insn: &Instruction, key: Key) -> (Way, Option<Plan>) {
        let simple = |way| (way, None);
        if native::is_hint(insn) && insn.mnemonic() != M::Pause {
            return simple(Way::Nothing);
        }
        let class = self.classify(insn);
        let supervisor = key.mmu() != MmuIndex::User;
        if matches!(insn.mnemonic(), M::Cli | M::Sti | M::Pushfq) && supervisor {
            return simple(Way::Special);
        }
        if class == Class::System {
            return simple(Way::Depart);
        }
        if has_string_operand(insn) {
            return simple(if class == Class::Interpreted { Way::Callout } else { Way::Depart });
        }
        match insn.mnemonic() {
            M::Jmp | M::Call | M::Ret => return simple(branch_way(insn)),
            _ if insn.is_jcc_short_or_near() => return simple(branch_way(insn)),
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz | M::Jcxz => return simple(Way::Depart),
            M::Push if insn.stack_pointer_increment() == -8 && insn.op0_kind() != OpKind::Memory => {
                return simple(Way::Special);
            }
            M::Pop if insn.stack_pointer_increment() == 8 && insn.op0_kind() == OpKind::Register => {
                return simple(Way::Special);
            }
            M::Leave if insn.code() == Code::Leaveq => return simple(Way::Special),
            M::Lea if reaches(insn) => return simple(Way::Native),
            M::Lea => return simple(Way::Depart),
            _ => {}
        }
        let plan = native::plan(self, insn);
        if class == Class::Other && plan.is_none() {
            // What the host executes in other ways may change what translations depend on.
            return simple(Way::Depart);
        }
        match plan {
            Some(plan) if can_reencode(insn, &plan, key) => (Way::Native, Some(plan)),
            _ if insn.flow_control() == FlowControl::Next => simple(Way::Callout),
            _ => simple(Way::Depart),
        }
    }
}

/// How a near branch is done.
fn branch_way(insn: &Instruction) -> Way {
    let target = insn.near_branch_target();
    let ordinary = match insn.op0_kind() {
        _ if insn.mnemonic() == M::Ret => matches!(insn.code(), Code::Retnq | Code::Retnq_imm16),
        OpKind::NearBranch64 => target as i32 as i64 == target as i64,
        // The stack pointer as a target would have to be read in the middle of a push.
        OpKind::Register => insn.op0_register().is_gpr64() && insn.op0_register() != Register::RSP,
        OpKind::Memory => insn.memory_size().size() == 8 && reaches(insn),
        _ => false,
    };
    if ordinary { Way::Special } else { Way::Depart }
}

/// Whether the address of the memory operand can be computed as it is encoded.
fn reaches(insn: &Instruction) -> bool {
    let displacement = insn.memory_displacement64() as i64;
    insn.memory_base() != Register::EIP
        && !insn.memory_index().is_vector_register()
        && displacement as i32 as i64 == displacement
}

/// The flags that matter at `target`, as far as a look at its code tells.
fn live_at(page: &[u8; 4096], target: u64, head: u16, at_head: u32) -> u32 {
    if target == head as u64 {
        return at_head;
    }
    if target >= 4096 {
        return liveness::ALL;
    }
    let mut decoder = Decoder::with_ip(64, &page[target as usize..], target, DecoderOptions::NONE);
    let (mut unknown, mut live) = (liveness::ALL, 0);
    for _ in 0..PEEK_MAX {
        if unknown == 0 || !decoder.can_decode() {
            break;
        }
        let insn = decoder.decode();
        if insn.is_invalid() || insn.is_privileged() || insn.flow_control() != FlowControl::Next {
            live |= insn.rflags_read() & unknown;
            return live | unknown;
        }
        live |= insn.rflags_read() & unknown;
        unknown &= !liveness::overwritten(&insn);
    }
    live | unknown
}

fn has_string_operand(insn: &Instruction) -> bool {
    use OpKind::*;
    (0..insn.op_count()).any(|n| {
        matches!(
            insn.op_kind(n),
            MemorySegSI
                | MemorySegESI
                | MemorySegRSI
                | MemorySegDI
                | MemorySegEDI
                | MemorySegRDI
                | MemoryESDI
                | MemoryESEDI
                | MemoryESRDI
        )
    })
}

/// Whether an instruction can execute as itself with registers renamed and its memory operand replaced.
fn can_reencode(insn: &Instruction, plan: &Plan, key: Key) -> bool {
    let available = match plan.class {
        PlanClass::Plain | PlanClass::PlainVex => true,
        PlanClass::Sse => key.simd(),
        PlanClass::Avx => key.avx(),
        PlanClass::Mmx | PlanClass::MmxSse | PlanClass::X87 => false,
    };
    let high = (0..insn.op_count()).any(|n| {
        insn.op_kind(n) == OpKind::Register
            && matches!(insn.op_register(n), Register::AH | Register::CH | Register::DH | Register::BH)
    });
    if plan.memory == Memory::None {
        return available;
    }
    // AH to BH cannot be encoded beside S0.
    available
        && !high
        && reaches(insn)
        && plan.size <= 32
        && plan.size.is_power_of_two()
        && !has_fixed_address(insn)
}

/// The forms of MOV with nothing but a 64-bit address.
fn has_fixed_address(insn: &Instruction) -> bool {
    use Code::*;
    matches!(
        insn.code(),
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    )
}

struct Translator {
    e: Emit,
    stubs: Stubs,
    key: Key,
    gpa: u64,
    mapping: Mapping,
    /// Direct, verified, depart.
    entries: [Label; 3],
    /// After the mapping is set up: where loops go back to.
    body: Label,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    first_exit: u32,
    encoder: Encoder,
    head_live: u32,
    bmi2: bool,
}

/// Code that is rarely executed and stands behind the trace.
enum Cold {
    /// A look-up missed.
    Miss { label: Label, back: Label, after: Label, site: Site, table: i32, flags_saved: bool },
    /// Requests are pending at the head: leave for it.
    Poll { label: Label, flags_saved: bool },
    /// Requests are pending when the trace goes back to its head.
    LoopPoll { label: Label, flags_saved: bool },
    /// The linear page leads elsewhere: the target is in S0.
    Unverified { label: Label, flags_saved: bool },
    /// The vector registers are not loaded.
    LoadSimd { label: Label, back: Label },
    /// A branch out.
    Exit { label: Label, target: u64, number: Option<u32> },
    /// Back to the head.
    Loop { label: Label },
}

impl Translator {
    fn new(base: u64, stubs: Stubs, key: Key, gpa: u64, first_exit: u32) -> Translator {
        let mut e = Emit::new(base);
        let entries = [e.label(), e.label(), e.label()];
        let body = e.label();
        Translator {
            e,
            stubs,
            key,
            gpa,
            mapping: Mapping::CANONICAL,
            entries,
            body,
            cold: Vec::new(),
            exits: Vec::new(),
            first_exit,
            encoder: Encoder::new(64),
            head_live: liveness::ALL,
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
        }
    }

    fn trace(&mut self, trace: &Trace) {
        let head = trace.steps[0].offset;
        self.head_live = trace.live;
        self.mapping = self.choose_mapping(trace);
        self.prologue(trace, head);
        let mut ended = false;
        for step in &trace.steps {
            ended = self.step(step, head);
        }
        if !ended {
            self.branch(trace.end, head);
        }
        self.emit_cold(head);
    }

    // ---- mapping ----

    fn choose_mapping(&mut self, trace: &Trace) -> Mapping {
        let (mut uses, mut fixed) = ([0u32; 16], 0u16);
        for step in &trace.steps {
            if matches!(step.way, Way::Nothing | Way::Callout) {
                continue;
            }
            let (mut explicit, mut high) = (0u16, false);
            for n in 0..step.insn.op_count() {
                if step.insn.op_kind(n) == OpKind::Register
                    && let Some(number) = gpr_number(step.insn.op_register(n))
                {
                    uses[number as usize & 0xf] += 1;
                    explicit |= 1 << (number & 0xf);
                    high |= number >= crate::regs::HIGH;
                }
            }
            if high {
                // Nothing beside AH to BH may move to where it needs a REX prefix.
                fixed |= explicit;
            }
            for register in [step.insn.memory_base(), step.insn.memory_index()] {
                if let Some(number) = gpr_number(register) {
                    uses[number as usize & 0xf] += 1;
                    explicit |= 1 << (number & 0xf);
                }
            }
            if let Some(plan) = &step.plan {
                fixed |= plan.gprs & !explicit | fixed_operands(&step.insn);
            }
            if step.insn.mnemonic() == M::Leave {
                fixed |= 1 << crate::regs::RBP;
            }
        }
        // A loop pays for the change once, anything else at every execution.
        let gain_min = if trace.loops { 1 } else { 6 };
        // RAX holds flags where they have to be kept.
        fixed |= 1;
        Mapping::choose(&uses, fixed, gain_min)
    }

    // ---- head ----

    fn prologue(&mut self, trace: &Trace, head: u16) {
        let live = self.head_live != 0;
        let [direct, verified, _] = self.entries;
        // The verified entry first: it falls through to the direct one.
        self.e.align(16, 0);
        self.e.bind(verified);
        let (ids, tags) = (self.bank(jit!(page_ids), 4), self.bank(jit!(page_tags), 8));
        self.e.lea_disp32(S1, S0, -(head as i32));
        if live {
            self.save_flags();
        }
        let fail = self.e.label();
        // S1 is a page address only if the offset is right, so one comparison checks both.
        self.e.gs_store(jit!(target), S1);
        self.e.shr(S1, 12);
        self.e.movzx8(S1, S1);
        const { assert!(PAGES == 256) };
        self.e.gs_load_scaled(S0, S1, 3, tags);
        self.e.gs_cmp(S0, jit!(target));
        self.e.jcc(cc::NE, fail);
        self.e.gs_cmp32_scaled_imm(S1, 2, ids, page_id(self.gpa, self.key));
        self.cold.push(Cold::Unverified { label: fail, flags_saved: live });
        self.e.jcc(cc::NE, fail);
        self.e.gs_load(S1, jit!(target));
        self.e.gs_store(jit!(page), S1);
        if live {
            self.restore_flags();
        }
        self.e.align(16, 0);
        self.e.bind(direct);
        let poll = self.e.label();
        self.poll(poll, live);
        self.cold.push(Cold::Poll { label: poll, flags_saved: live });
        if trace.simd {
            let (load, back) = (self.e.label(), self.e.label());
            self.e.gs_cmp8_imm(jit!(simd_loaded), 0);
            self.e.jcc(cc::E, load);
            self.e.bind(back);
            self.cold.push(Cold::LoadSimd { label: load, back });
        }
        if live {
            self.restore_flags();
        }
        self.mapping.emit_enter(&mut self.e);
        self.e.bind(self.body);
    }

    /// The start of this privilege's bank of a table with `width` bytes an entry.
    fn bank(&self, table: i32, width: i32) -> i32 {
        table + self.key.mmu() as i32 * PAGES as i32 * width
    }

    /// Looks for requests. Flags are saved first when they matter, and not restored.
    fn poll(&mut self, pending: Label, save: bool) {
        // The first instruction is long enough to be replaced by a jump in one step.
        self.e.gs_load(S0, jit!(signals));
        if save {
            self.save_flags();
        }
        self.e.load32(S0, S0);
        self.e.gs_test32(S0, jit!(poll_mask));
        self.e.jcc(cc::NE, pending);
    }

    fn save_flags(&mut self) {
        self.e.gs_store(jit!(saved_rax), host::RAX);
        self.e.flags_to_ax();
    }

    fn restore_flags(&mut self) {
        self.e.flags_from_ax();
        self.e.gs_load(host::RAX, jit!(saved_rax));
    }

    // ---- instructions ----

    /// Emits one instruction; true when the trace has ended with it.
    fn step(&mut self, step: &Step, head: u16) -> bool {
        match step.way {
            Way::Nothing | Way::Depart => false,
            Way::Callout => {
                self.callout(step);
                false
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
    }

    /// Puts the linear address of the memory operand into S0.
    fn address(&mut self, insn: &Instruction) {
        let base = insn.memory_base();
        let displacement = insn.memory_displacement64() as i32;
        if base == Register::RIP {
            // Decoded as if the page stood at 0, so the address is relative to the page.
            self.e.gs_load(S0, jit!(page));
            self.e.lea_disp32(S0, S0, displacement);
        } else {
            let wide = insn.memory_base().size() != 4 && insn.memory_index().size() != 4;
            let base = gpr_number(base).map(|guest| self.read_register(guest, S0));
            let index = gpr_number(insn.memory_index()).map(|guest| self.read_register(guest, S1));
            let scale = insn.memory_index_scale().trailing_zeros() as u8;
            match (base, index) {
                (None, None) => self.e.mov_imm(S0, displacement as i64 as u64),
                _ => self.e.lea(wide, S0, base, index.map(|index| (index, scale)), displacement),
            }
        }
        let segment = match insn.memory_segment() {
            Register::FS => x86::state::seg::FS,
            Register::GS => x86::state::seg::GS,
            _ => return,
        };
        let at = offset_of!(Cpu, regs)
            + offset_of!(Regs, seg)
            + segment * size_of::<Segment>()
            + offset_of!(Segment, base);
        self.e.gs_load(S1, at as i32);
        self.e.lea(true, S0, Some(S0), Some((S1, 0)), 0);
    }

    /// The host register that holds a guest register, loading it into `scratch` if it is in memory.
    fn read_register(&mut self, guest: u8, scratch: u8) -> u8 {
        match self.mapping.loc(guest) {
            Loc::Host(number) => number,
            Loc::Memory => {
                self.e.gs_load(scratch, slot(guest));
                scratch
            }
        }
    }

    /// Turns the linear address in S0 into a host address, or goes the slow way. Uses S1. `keep_flags`
    /// when flags matter. `after` is where an instruction goes on that the slow way has done.
    fn look_up(&mut self, site: Site, keep_flags: bool, after: Label) {
        let (miss, back) = (self.e.label(), self.e.label());
        if keep_flags {
            self.save_flags();
        }
        let array = (self.key.mmu() as usize) * size_of::<[Entry; crate::mmu::tlb::ENTRIES]>()
            + if site.writes() { offset_of!(Tlb, write) } else { offset_of!(Tlb, read) };
        let table = (offset_of!(Cpu, tlb) + array) as i32;
        const { assert!(size_of::<Entry>() == 16 && offset_of!(Entry, page) == 0 && offset_of!(Entry, host) == 8) };
        if self.bmi2 {
            self.e.rorx(S1, S0, 8);
        } else {
            self.e.mov(S1, S0);
            self.e.shr(S1, 8);
        }
        self.e.and32_imm(S1, (crate::mmu::tlb::ENTRIES as u32 - 1) << 4);
        self.e.gs_sub_indexed(S0, S1, table);
        if site.aligned() {
            self.e.test8_imm(S0, site.len() as u8 - 1);
            self.e.jcc(cc::NE, miss);
        }
        self.e.cmp_imm(S0, 4096 - site.len() as i32);
        self.e.jcc(cc::A, miss);
        self.e.gs_add_indexed(S0, S1, table + 8);
        self.e.bind(back);
        if keep_flags {
            self.restore_flags();
        }
        self.cold.push(Cold::Miss { label: miss, back, after, site, table, flags_saved: keep_flags });
    }

    fn native(&mut self, step: &Step) {
        let insn = &step.insn;
        if insn.mnemonic() == M::Lea {
            return self.lea(step);
        }
        let plan = step.plan.as_ref().expect("native instructions have a plan");
        let memory = plan.memory != Memory::None;
        // Registers that live in memory, other than those of the address.
        let mut absent: Vec<u8> = Vec::new();
        for n in 0..insn.op_count() {
            if insn.op_kind(n) == OpKind::Register
                && let Some(number) = gpr_number(insn.op_register(n))
                && self.mapping.loc(number & 0xf) == Loc::Memory
                && !absent.contains(&(number & 0xf))
            {
                absent.push(number & 0xf);
            }
        }
        let scratch: &[u8] = if memory { &[S1] } else { &[S0, S1] };
        if absent.len() > scratch.len() {
            return self.callout(step);
        }
        let mut new = *insn;
        for n in 0..insn.op_count() {
            if insn.op_kind(n) == OpKind::Register
                && let Some(number) = gpr_number(insn.op_register(n))
            {
                let to = match self.mapping.loc(number & 0xf) {
                    Loc::Host(to) => to,
                    Loc::Memory => scratch[absent.iter().position(|&a| a == number & 0xf).expect("listed")],
                };
                if number < crate::regs::HIGH {
                    new.set_op_register(n, host_register(insn.op_register(n).size(), to));
                }
            }
        }
        if memory {
            new.set_memory_base(host_register(8, S0));
            new.set_memory_index(Register::None);
            new.set_memory_index_scale(1);
            new.set_memory_displacement64(0);
            new.set_memory_displ_size(0);
            new.set_segment_prefix(Register::None);
        }
        // What cannot be encoded so, its handler does.
        let Some(encoded) = self.encode(&new) else { return self.callout(step) };
        let after = self.e.label();
        if memory {
            self.address(insn);
            let aligned = plan.align as usize >= plan.size as usize && plan.align > 1;
            let site = Site::new(
                step.offset,
                self.mapping,
                plan.size as usize,
                plan.memory != Memory::Read,
                aligned,
            );
            let keep = liveness::before(insn, step.live) != 0;
            self.look_up(site, keep, after);
        }
        for (&guest, &register) in absent.iter().zip(scratch) {
            self.e.gs_load(register, slot(guest));
        }
        self.e.bytes(&encoded);
        for (&guest, &register) in absent.iter().zip(scratch) {
            if plan.gprs_written & 1 << guest != 0 {
                self.e.gs_store(slot(guest), register);
            }
        }
        self.e.bind(after);
    }

    fn lea(&mut self, step: &Step) {
        let insn = &step.insn;
        let guest = gpr_number(insn.op0_register()).expect("LEA has a register");
        let size = insn.op0_register().size();
        // A segment prefix means nothing to LEA.
        let mut plain = *insn;
        plain.set_segment_prefix(Register::None);
        self.address(&plain);
        match (self.mapping.loc(guest), size) {
            (Loc::Host(to), 8) => self.e.mov(to, S0),
            (Loc::Host(to), 4) => self.e.mov32(to, S0),
            (Loc::Memory, 8) => self.e.gs_store(slot(guest), S0),
            (Loc::Memory, 4) => {
                self.e.mov32(S0, S0);
                self.e.gs_store(slot(guest), S0);
            }
            (loc, _) => {
                // 16 bits: the rest of the register stays.
                let to = match loc {
                    Loc::Host(to) => to,
                    Loc::Memory => {
                        self.e.gs_load(S1, slot(guest));
                        S1
                    }
                };
                // mov to16, r14w
                self.e.bytes(&[0x66, 0x44 | to >> 3, 0x89, 0xc0 | (S0 & 7) << 3 | to & 7]);
                if loc == Loc::Memory {
                    self.e.gs_store(slot(guest), S1);
                }
            }
        }
    }

    /// The bytes of an instruction, which do not depend on its place.
    fn encode(&mut self, insn: &Instruction) -> Option<Vec<u8>> {
        let result = self.encoder.encode(insn, 0);
        let bytes = self.encoder.take_buffer();
        result.ok().map(|_| bytes)
    }

    // ---- stack and branches ----

    fn special(&mut self, step: &Step, head: u16) -> bool {
        let insn = &step.insn;
        let next = step.offset as u64 + insn.len() as u64;
        match insn.mnemonic() {
            M::Push => self.push(step),
            M::Pop => self.pop(step),
            M::Leave => self.leave(step),
            M::Cli => self.set_interrupts(step, false),
            M::Sti => self.set_interrupts(step, true),
            M::Pushfq => self.push_flags(step),
            M::Ret => {
                let after = self.e.label();
                self.stack_read(step, after);
                let pop = 8 + if insn.op_count() > 0 { insn.immediate(0) as i32 } else { 0 };
                self.e.lea_disp32(host::R15, host::R15, pop);
                self.e.mov(S0, S1);
                self.go_indirect();
                // The slow way never comes back to a branch.
                self.e.bind(after);
                return true;
            }
            M::Jmp => match insn.op0_kind() {
                OpKind::NearBranch64 => {
                    self.branch(insn.near_branch_target(), head);
                    return true;
                }
                _ => {
                    let after = self.e.label();
                    self.indirect_target(step, after);
                    self.go_indirect();
                    self.e.bind(after);
                    return true;
                }
            },
            M::Call => {
                let after = self.e.label();
                let direct = insn.op0_kind() == OpKind::NearBranch64;
                if !direct {
                    self.indirect_target(step, after);
                    self.e.gs_store(jit!(target), S0);
                }
                self.stack_write(step, after);
                self.e.gs_load(S1, jit!(page));
                self.e.lea_disp32(S1, S1, next as i32);
                self.e.store64(S0, S1);
                self.e.lea_disp32(host::R15, host::R15, -8);
                if direct {
                    self.branch(insn.near_branch_target(), head);
                } else {
                    self.e.gs_load(S0, jit!(target));
                    self.go_indirect();
                }
                self.e.bind(after);
                return true;
            }
            _ => {
                // Jcc
                let target = insn.near_branch_target();
                let condition = condition::number(insn);
                if target == head as u64 {
                    let label = self.e.label();
                    self.e.jcc(condition, label);
                    self.cold.push(Cold::Loop { label });
                } else {
                    let label = self.e.label();
                    let mut number = None;
                    if self.mapping.is_canonical() && target < 4096 {
                        // Once linked, the branch itself goes to the target.
                        let patch = self.e.jcc_patchable(condition, label);
                        number = Some(self.note_exit(patch, target));
                    } else {
                        self.e.jcc(condition, label);
                    }
                    self.cold.push(Cold::Exit { label, target, number });
                }
            }
        }
        false
    }

    /// Loads eight bytes from the stack into S1.
    fn stack_read(&mut self, step: &Step, after: Label) {
        self.e.mov(S0, host::R15);
        let site = Site::new(step.offset, self.mapping, 8, false, false);
        self.look_up(site, step.live != 0, after);
        self.e.load64(S1, S0);
    }

    /// Leaves the host address of the eight bytes below the stack pointer in S0.
    fn stack_write(&mut self, step: &Step, after: Label) {
        self.stack_write_keeping(step, step.live, after);
    }

    fn stack_write_keeping(&mut self, step: &Step, live: u32, after: Label) {
        self.e.lea_disp32(S0, host::R15, -8);
        let site = Site::new(step.offset, self.mapping, 8, true, false);
        self.look_up(site, live != 0, after);
    }

    fn push(&mut self, step: &Step) {
        let after = self.e.label();
        self.stack_write(step, after);
        match gpr_number(step.insn.op0_register()) {
            Some(guest) if step.insn.op0_kind() == OpKind::Register => {
                let register = self.read_register(guest, S1);
                self.e.store64(S0, register);
            }
            _ => self.e.store64_imm(S0, step.insn.immediate(0) as i32),
        }
        self.e.lea_disp32(host::R15, host::R15, -8);
        self.e.bind(after);
    }

    /// CLI and STI of a supervisor: RFLAGS.IF, and whether interrupts end traces.
    fn set_interrupts(&mut self, step: &Step, enable: bool) {
        let keep = step.live != 0;
        if keep {
            self.save_flags();
        }
        let (flag, request) = (rflags::IF as u32, signal::INTERRUPT);
        if enable {
            self.e.gs_or32_imm(jit!(system_flags), flag);
            self.e.gs_or32_imm(jit!(poll_mask), request);
        } else {
            self.e.gs_and32_imm(jit!(system_flags), !flag);
            self.e.gs_and32_imm(jit!(poll_mask), !request);
        }
        if keep {
            self.restore_flags();
        }
    }

    /// PUSHFQ of a supervisor.
    fn push_flags(&mut self, step: &Step) {
        let after = self.e.label();
        self.stack_write_keeping(step, liveness::ALL, after);
        self.e.host_flags_to(S1);
        let keep = step.live != 0;
        if keep {
            self.save_flags();
        }
        self.e.and32_imm(S1, rflags::STATUS as u32);
        self.e.gs_or(S1, jit!(system_flags));
        self.e.store64(S0, S1);
        if keep {
            self.restore_flags();
        }
        self.e.lea_disp32(host::R15, host::R15, -8);
        self.e.bind(after);
    }

    fn pop(&mut self, step: &Step) {
        let after = self.e.label();
        self.stack_read(step, after);
        let guest = gpr_number(step.insn.op0_register()).expect("POP of a register");
        self.e.lea_disp32(host::R15, host::R15, 8);
        match self.mapping.loc(guest) {
            Loc::Host(to) => self.e.mov(to, S1),
            Loc::Memory => self.e.gs_store(slot(guest), S1),
        }
        debug_assert!(guest as usize != RSP || self.mapping.loc(guest) == Loc::Host(host::R15));
        self.e.bind(after);
    }

    fn leave(&mut self, step: &Step) {
        let after = self.e.label();
        self.e.mov(S0, host::RBP);
        let site = Site::new(step.offset, self.mapping, 8, false, false);
        self.look_up(site, step.live != 0, after);
        self.e.load64(S1, S0);
        self.e.lea_disp32(host::R15, host::RBP, 8);
        self.e.mov(host::RBP, S1);
        self.e.bind(after);
    }

    /// Puts the target of an indirect branch into S0.
    fn indirect_target(&mut self, step: &Step, after: Label) {
        match step.insn.op0_kind() {
            OpKind::Register => {
                let guest = gpr_number(step.insn.op0_register()).expect("a general register");
                let register = self.read_register(guest, S0);
                self.e.mov(S0, register);
            }
            _ => {
                self.address(&step.insn);
                let site = Site::new(step.offset, self.mapping, 8, false, false);
                self.look_up(site, step.live != 0, after);
                self.e.load64(S0, S0);
            }
        }
    }

    /// Goes to the linear address in S0.
    fn go_indirect(&mut self) {
        self.mapping.emit_leave(&mut self.e);
        match self.key.mmu() {
            MmuIndex::KernelAc => self.e.jmp_to(self.stubs.leave),
            mmu => {
                let table = jit!(targets) + (mmu as usize * super::state::TARGETS * 8) as i32;
                self.e.movzx16(S1, S0);
                self.e.gs_jmp_scaled(S1, table);
            }
        }
    }

    /// Goes to an offset from the page.
    fn branch(&mut self, target: u64, head: u16) {
        if target == head as u64 {
            self.loop_back();
            return;
        }
        self.exit(target);
    }

    /// Leaves the trace for `target`, relative to the page.
    fn exit(&mut self, target: u64) {
        self.mapping.emit_leave(&mut self.e);
        self.e.gs_load(S0, jit!(page));
        self.e.lea_disp32(S0, S0, target as i32);
        // Unlinked, it notes its number and leaves; linked, the jump goes to the target.
        let unlinked = self.e.label();
        let patch = self.e.jmp_patchable(unlinked);
        let number = self.note_exit(patch, target);
        self.e.bind(unlinked);
        self.e.gs_store_imm32(jit!(exit), number);
        self.e.jmp_to(self.stubs.leave_to_link);
    }

    /// Leaves for `target` and has exit `number` linked to it.
    fn leave_to_link(&mut self, target: u64, number: u32) {
        self.e.gs_load(S0, jit!(page));
        self.e.lea_disp32(S0, S0, target as i32);
        self.e.gs_store_imm32(jit!(exit), number);
        self.e.jmp_to(self.stubs.leave_to_link);
    }

    fn note_exit(&mut self, patch: u64, target: u64) -> u32 {
        let exit = Exit { patch, page: self.gpa >> 12, key: self.key, same_page: target < 4096 };
        self.exits.push(exit);
        self.first_exit + self.exits.len() as u32 - 1
    }

    fn loop_back(&mut self) {
        let label = self.e.label();
        let live = self.head_live != 0;
        self.poll(label, live);
        if live {
            self.restore_flags();
        }
        self.cold.push(Cold::LoopPoll { label, flags_saved: live });
        let body = self.body;
        self.e.jmp(body);
    }

    // ---- cold code ----

    fn emit_cold(&mut self, head: u16) {
        let depart = self.entries[2];
        self.e.bind(depart);
        self.leave_for(head as u64);
        // Cold code may ask for more of it.
        while let Some(cold) = self.cold.pop() {
            match cold {
                Cold::Miss { label, back, after, site, table, flags_saved } => {
                    self.e.bind(label);
                    self.e.gs_add_indexed(S0, S1, table);
                    if flags_saved {
                        self.restore_flags();
                    }
                    self.e.gs_store_imm32(jit!(site), site.0);
                    let keep = self.e.label();
                    self.e.call_to(self.stubs.slow);
                    // Five bytes, which the routine skips when the instruction is done.
                    self.e.jmp(keep);
                    self.e.jmp(after);
                    self.e.bind(keep);
                    if flags_saved {
                        self.save_flags();
                    }
                    self.e.jmp(back);
                }
                Cold::Poll { label, flags_saved } => {
                    self.e.bind(label);
                    if flags_saved {
                        self.restore_flags();
                    }
                    self.leave_for(head as u64);
                }
                Cold::LoopPoll { label, flags_saved } => {
                    self.e.bind(label);
                    if flags_saved {
                        self.restore_flags();
                    }
                    self.mapping.emit_leave(&mut self.e);
                    self.leave_for(head as u64);
                }
                Cold::Unverified { label, flags_saved } => {
                    self.e.bind(label);
                    if flags_saved {
                        self.restore_flags();
                    }
                    self.e.gs_load(S0, jit!(target));
                    self.e.lea_disp32(S0, S0, head as i32);
                    self.e.jmp_to(self.stubs.leave);
                }
                Cold::LoadSimd { label, back } => {
                    self.e.bind(label);
                    self.e.call_to(self.stubs.load_simd);
                    self.e.jmp(back);
                }
                Cold::Exit { label, target, number: None } => {
                    self.e.bind(label);
                    self.exit(target);
                }
                Cold::Exit { label, target, number: Some(number) } => {
                    self.e.bind(label);
                    self.leave_to_link(target, number);
                }
                Cold::Loop { label } => {
                    self.e.bind(label);
                    self.loop_back();
                }
            }
        }
    }

    /// Leaves translated code for an offset in the page, without linking.
    fn leave_for(&mut self, target: u64) {
        self.e.gs_load(S0, jit!(page));
        self.e.lea_disp32(S0, S0, target as i32);
        self.e.jmp_to(self.stubs.leave);
    }
}

/// The general register of `size` bytes with this number; for bytes the low one.
fn host_register(size: usize, number: u8) -> Register {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // AL to BL, then AH to BH stand in between.
        _ if number >= 4 => return Register::SPL + (number as u32 - 4),
        _ => Register::AL,
    };
    first + number as u32
}

/// Guest registers that an operand of the instruction is by its encoding.
fn fixed_operands(insn: &Instruction) -> u16 {
    use OpCodeOperandKind as K;
    let code = insn.op_code();
    (0..insn.op_count()).fold(0, |fixed, n| {
        fixed
            | match code.op_kind(n) {
                K::al | K::ax | K::eax | K::rax => 1 << crate::regs::RAX,
                K::cl => 1 << crate::regs::RCX,
                K::dx => 1 << crate::regs::RDX,
                _ => 0,
            }
    })
}
