//! Which status flags matter at an instruction, looking as far as its page goes: translated code keeps
//! no others.

use crate::cpu::Cpu;
use crate::jit::liveness;
use crate::jit::trace::{is_direct, target_of};
use iced_x86::{Decoder, DecoderOptions, FlowControl, RflagsBits};
use x86::reg::rflags;

/// Instructions looked at; beyond, all flags matter.
const LOOK_MAX: usize = 4000;

impl Cpu {
    /// The status flags that code from linear address `rip` on may read before it sets them.
    pub(super) fn flags_that_matter(&mut self, rip: u64) -> u64 {
        let Ok(gpa) = self.fetch_address(rip) else { return rflags::STATUS };
        let mut page = [0u8; 4096];
        self.copy_ram(gpa & !0xfff, &mut page);
        let matter = live(&page, gpa & 0xfff, self.mode.code_bits as u32);
        let pairs = [
            (RflagsBits::CF, rflags::CF),
            (RflagsBits::PF, rflags::PF),
            (RflagsBits::AF, rflags::AF),
            (RflagsBits::ZF, rflags::ZF),
            (RflagsBits::SF, rflags::SF),
            (RflagsBits::OF, rflags::OF),
        ];
        pairs.iter().filter(|(iced, _)| matter & iced != 0).map(|(_, flag)| flag).sum()
    }
}

/// The flags that code from offset `start` of a page on may read: a search along all branches in it.
fn live(page: &[u8; 4096], start: u64, bits: u32) -> u32 {
    let mut live = 0;
    // Offsets still to be looked at, with the flags that are not overwritten on the way to them.
    let mut open = vec![(start, liveness::ALL)];
    // For each offset the flags it was looked at for.
    let mut seen = vec![0u32; 4096];
    let mut looks = 0;
    while let Some((at, unknown)) = open.pop() {
        let unknown = unknown & !live;
        if at >= 4096 {
            live |= unknown;
            continue;
        }
        if unknown & !seen[at as usize] == 0 {
            continue;
        }
        seen[at as usize] |= unknown;
        looks += 1;
        if looks > LOOK_MAX {
            return liveness::ALL;
        }
        let mut decoder = Decoder::with_ip(bits, &page[at as usize..], at, DecoderOptions::NONE);
        let insn = decoder.decode();
        if insn.is_invalid() || insn.is_privileged() {
            live |= unknown;
            continue;
        }
        live |= insn.rflags_read() & unknown;
        let after = unknown & !live & !liveness::overwritten(&insn);
        if after == 0 {
            continue;
        }
        match insn.flow_control() {
            FlowControl::Next => open.push((at + insn.len() as u64, after)),
            FlowControl::UnconditionalBranch | FlowControl::Call if is_direct(&insn) => {
                open.push((target_of(&insn), after));
            }
            FlowControl::ConditionalBranch => {
                open.push((target_of(&insn), after));
                open.push((at + insn.len() as u64, after));
            }
            _ => live |= after,
        }
    }
    live
}
