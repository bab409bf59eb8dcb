//! The instructions of a trace: which they are, how each is done, and which flags matter where.

use super::cache::Key;
use super::liveness;
use super::source::Source;
use super::way::{Kind, Kinds, Way};
use crate::block::decode::INSTRUCTION_LEN_MAX;
use crate::native::classify::{Class as PlanClass, Plan};
use crate::vm::{VmShared, line_mask};
use iced_x86::{
    Code, CodeSize, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind, Register,
};

/// Most instructions in a trace.
const INSTRUCTIONS_MAX: usize = 64;
/// How far ahead a branch target is searched for what it does to flags.
const PEEK_MAX: usize = 8;

/// One instruction of a trace.
pub(super) struct Step {
    pub(super) insn: Instruction,
    /// Its own bytes, as many as it is long.
    pub(super) bytes: [u8; INSTRUCTION_LEN_MAX],
    /// Offset in the page.
    pub(super) offset: u16,
    pub(super) way: Way,
    /// For native ones.
    pub(super) plan: Option<Plan>,
    /// Guest registers that an operand is by the instruction's encoding.
    pub(super) fixed: u16,
    /// Flags may be in AX meanwhile, and RAX in memory: it needs neither.
    pub(super) leaves_flags_away: bool,
    flags_read: u32,
    flags_set: u32,
    /// For a branch: flags that matter where it leads; `None` is the head.
    at_target: Option<u32>,
    /// Flags that matter after it.
    pub(super) live: u32,
}

impl Step {
    /// Whether any flag matters before it.
    pub(super) fn needs_flags(&self) -> bool {
        self.before(self.live) != 0
    }

    /// The flags that matter before it, given those that matter after it.
    fn before(&self, after: u32) -> u32 {
        (after & !self.flags_set | self.flags_read) & liveness::ALL
    }
}

pub(super) struct Trace {
    pub(super) steps: Vec<Step>,
    pub(super) lines: u64,
    /// Where it goes after the last step, if that does not branch: offset in the page (or beyond).
    pub(super) end: u64,
    pub(super) simd: bool,
    /// Flags that matter at its head.
    pub(super) live: u32,
    /// It branches back to its own head.
    pub(super) loops: bool,
}

impl Kinds {
    /// Follows the code from `start` on and decides how each instruction is done.
    pub(super) fn collect(&mut self, vm: &VmShared, source: &mut Source, start: u16, key: Key) -> Trace {
        let mut steps = std::mem::take(&mut self.steps);
        steps.clear();
        let mut trace =
            Trace { steps, lines: 0, end: start as u64, simd: false, live: liveness::ALL, loops: false };
        source.read(start as usize, INSTRUCTION_LEN_MAX);
        let mut decoder = source.decoder(key);
        let mut at = start as u64;
        while trace.steps.len() < INSTRUCTIONS_MAX {
            trace.end = at;
            if at >= 4096 {
                break;
            }
            if source.lacks(at as usize, INSTRUCTION_LEN_MAX) {
                source.read(at as usize, INSTRUCTION_LEN_MAX);
                decoder = source.decoder(key);
            }
            decoder.set_position(at as usize).expect("inside the page");
            decoder.set_ip(at);
            let insn = as_of_64_bits(decoder.decode());
            if insn.is_invalid() {
                break;
            }
            let Kind { way, plan, flags_read, flags_set, fixed, leaves_flags_away } = self.of(vm, &insn, key);
            if way == Way::Depart {
                break;
            }
            trace.lines |= line_mask(at, insn.len() as u64);
            let vectors = |plan: &Plan| matches!(plan.class, PlanClass::Sse | PlanClass::Avx);
            trace.simd |=
                plan.as_ref().is_some_and(vectors) || way == Way::Special && insn.mnemonic() == M::Vzeroupper;
            let offset = at as u16;
            at += insn.len() as u64;
            trace.end = at;
            let flow = insn.flow_control();
            let target = target_of(&insn);
            let branches = flow != FlowControl::Next && way == Way::Special;
            let mut bytes = [0; INSTRUCTION_LEN_MAX];
            bytes[..insn.len()].copy_from_slice(&source.bytes()[offset as usize..][..insn.len()]);
            trace.steps.push(Step {
                insn,
                bytes,
                offset,
                way,
                plan,
                fixed,
                leaves_flags_away,
                flags_read: flags_read as u32,
                flags_set: flags_set as u32,
                at_target: Some(liveness::ALL),
                live: liveness::ALL,
            });
            if way == Way::Hand || way == Way::Callout && changes_addresses(&insn) {
                break;
            }
            // Interrupts that waited for STI are seen at the head of the next trace, before anybody disables
            // them again.
            let enabled =
                trace.steps.len() >= 2 && trace.steps[trace.steps.len() - 2].insn.mnemonic() == M::Sti;
            if branches {
                match flow {
                    FlowControl::ConditionalBranch => {
                        trace.loops |= target == start as u64 && !key.careful();
                    }
                    FlowControl::UnconditionalBranch
                        if target < 4096 && !trace.steps.iter().any(|step| step.offset as u64 == target) =>
                    {
                        // Go on at the target; the jump itself needs no code.
                        let last = trace.steps.last_mut().expect("just pushed");
                        (last.way, last.leaves_flags_away) = (Way::Nothing, true);
                        at = target;
                        trace.end = target;
                    }
                    _ => {
                        let back = flow == FlowControl::UnconditionalBranch && target == start as u64;
                        trace.loops |= back && !key.careful();
                        break;
                    }
                }
            }
            if enabled {
                break;
            }
        }
        // STI holds interrupts off for one instruction more, so that has to be in the trace too.
        while let Some(last) = trace.steps.last()
            && last.insn.mnemonic() == M::Sti
        {
            trace.end = last.offset as u64;
            trace.steps.pop();
        }
        let mut looked_at = 0;
        let mut live_at =
            |target: u64| (target != start as u64).then(|| live_at(source, target, key, &mut looked_at));
        for step in trace.steps.iter_mut().filter(|step| step.way == Way::Special) {
            let flow = step.insn.flow_control();
            let leads = matches!(flow, FlowControl::UnconditionalBranch | FlowControl::Call);
            if step.insn.is_jcc_short_or_near() || leads && is_direct(&step.insn) {
                step.at_target = live_at(target_of(&step.insn));
            }
        }
        let at_end = live_at(trace.end);
        // Twice: what matters at the head is known only after the first time.
        let mut at_head = liveness::ALL;
        for _ in 0..2 {
            let mut live = at_end.unwrap_or(at_head);
            for step in trace.steps.iter_mut().rev() {
                if step.way == Way::Special && step.insn.is_jcc_short_or_near() {
                    live |= step.at_target.unwrap_or(at_head);
                } else if step.way == Way::Special && step.insn.flow_control() != FlowControl::Next {
                    live = step.at_target.unwrap_or(at_head);
                }
                step.live = live;
                live = match step.way {
                    // Its handler may save all flags, as SYSCALL and exceptions do.
                    Way::Hand | Way::Callout => liveness::ALL,
                    _ => step.before(live),
                };
            }
            at_head = live;
            trace.live = live;
        }
        // What was looked at decides about flags, so it counts as much as what is executed.
        trace.lines |= looked_at;
        if vm.options.exact_flags {
            trace.live = liveness::ALL;
            trace.steps.iter_mut().for_each(|step| step.live = liveness::ALL);
        }
        trace
    }
}

/// Whether an instruction is a near branch to an address that it names.
pub(crate) fn is_direct(insn: &Instruction) -> bool {
    matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32)
}

/// Where a near branch leads, relative to its page, if it is direct.
pub(crate) fn target_of(insn: &Instruction) -> u64 {
    match insn.op0_kind() {
        // Addresses of 32 bits wrap around, so what lies before the page does as well.
        OpKind::NearBranch32 => insn.near_branch32() as i32 as i64 as u64,
        _ => insn.near_branch_target(),
    }
}

/// An instruction of 32-bit code in the form that 64-bit code has for it, if that is another: opcodes that became
/// prefixes, and moves with nothing but an address (SDM volume 2, §2.2.1.2 and §2.2.1.4).
fn as_of_64_bits(mut insn: Instruction) -> Instruction {
    let code = match insn.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        _ => return insn,
    };
    if insn.code_size() == CodeSize::Code32 {
        insn.set_code(code);
    }
    insn
}

/// The flags that matter at `target`, as far as a look at its code tells; adds the lines that were looked at.
fn live_at(source: &mut Source, target: u64, key: Key, lines: &mut u64) -> u32 {
    if target >= 4096 {
        return liveness::ALL;
    }
    source.read(target as usize, PEEK_MAX * INSTRUCTION_LEN_MAX);
    let bits = key.width() as u32 * 8;
    // What stands in the page behind this one is not the same wherever this one is.
    let bytes = &source.bytes()[target as usize..4096];
    let mut decoder = Decoder::with_ip(bits, bytes, target, DecoderOptions::NONE);
    let (mut unknown, mut live) = (liveness::ALL, 0);
    for _ in 0..PEEK_MAX {
        if unknown == 0 || !decoder.can_decode() {
            break;
        }
        let at = decoder.ip();
        let insn = decoder.decode();
        *lines |= line_mask(at, insn.len().max(1) as u64);
        if insn.is_invalid() || insn.is_privileged() || insn.flow_control() != FlowControl::Next {
            live |= insn.rflags_read() & unknown;
            return live | unknown;
        }
        live |= insn.rflags_read() & unknown;
        unknown &= !liveness::overwritten(&insn);
    }
    live | unknown
}

/// Whether an instruction that its handler does changes where addresses lead, so that nothing checked before
/// holds after it.
pub(super) fn changes_addresses(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        M::Invlpg | M::Invpcid => true,
        M::Mov => insn.op0_register() == Register::CR3,
        _ => false,
    }
}
