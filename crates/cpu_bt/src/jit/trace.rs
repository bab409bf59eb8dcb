//! The instructions of a trace: which they are, how each is done, and which flags matter where.

use super::cache::Key;
use super::liveness;
use super::way::Way;
use crate::cpu::Cpu;
use crate::native::classify::{Class as PlanClass, Plan};
use crate::vm::line_mask;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind};

/// Most instructions in a trace.
const INSTRUCTIONS_MAX: usize = 64;
/// How far ahead a branch target is searched for what it does to flags.
const PEEK_MAX: usize = 8;

/// One instruction of a trace.
pub(super) struct Step {
    pub(super) insn: Instruction,
    /// Offset in the page.
    pub(super) offset: u16,
    pub(super) way: Way,
    /// For native ones.
    pub(super) plan: Option<Plan>,
    /// Flags that matter after it.
    pub(super) live: u32,
    /// For a call: those that matter when it has returned.
    pub(super) live_on_return: u32,
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

impl Cpu {
    /// Follows the code from `start` on and decides how each instruction is done.
    pub(super) fn collect(&mut self, page: &[u8; 4096], start: u16, key: Key) -> Trace {
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
            let vectors = |plan: &Plan| matches!(plan.class, PlanClass::Sse | PlanClass::Avx);
            trace.simd |=
                plan.as_ref().is_some_and(vectors) || way == Way::Special && insn.mnemonic() == M::Vzeroupper;
            let offset = at as u16;
            at += insn.len() as u64;
            trace.end = at;
            let flow = insn.flow_control();
            let target = insn.near_branch_target();
            let branches = flow != FlowControl::Next && way == Way::Special;
            trace.steps.push(Step {
                insn,
                offset,
                way,
                plan,
                live: liveness::ALL,
                live_on_return: liveness::ALL,
            });
            if way == Way::Hand {
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
                        trace.steps.last_mut().expect("just pushed").way = Way::Nothing;
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
                        FlowControl::UnconditionalBranch | FlowControl::Call
                            if step.insn.op0_kind() == OpKind::NearBranch64 =>
                        {
                            live_at(page, step.insn.near_branch_target(), start, at_head)
                        }
                        _ => liveness::ALL,
                    };
                }
                step.live = live;
                if matches!(step.insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
                    let next = step.offset as u64 + step.insn.len() as u64;
                    step.live_on_return = live_at(page, next, start, at_head);
                }
                live = match step.way {
                    // Its handler may save all flags, as SYSCALL and exceptions do.
                    Way::Hand | Way::Callout => liveness::ALL,
                    _ => liveness::before(&step.insn, live),
                };
            }
            at_head = live;
            trace.live = live;
        }
        if self.vm.options.exact_flags {
            trace.live = liveness::ALL;
            trace.steps.iter_mut().for_each(|step| step.live = liveness::ALL);
        }
        trace
    }
}

/// The flags that matter at `target`, as far as a look at its code tells.
pub(super) fn live_at(page: &[u8; 4096], target: u64, head: u16, at_head: u32) -> u32 {
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
