//! Code that is rarely executed and stands behind the trace.

use super::Translator;
use crate::jit::cache::Key;
use crate::jit::emit::{Label, Operand, cc, host};
use crate::jit::mapping::{S0, S1};
use crate::jit::state::Site;
use crate::jit::stubs::jit;
use crate::signals::LIMIT_AT;

/// Code that is rarely executed and stands behind the trace.
pub(super) enum Cold {
    /// A look-up missed.
    Miss { label: Label, back: Label, after: Label, site: Site, table: i32, flags_saved: bool },
    /// A page was guessed wrongly: look in the soft TLB, or go on with care.
    Guess { label: Label, back: Label, careful: Label, guess: i32, argument: u32, bank: usize, site: Site },
    /// A guess that is counted has been made often enough.
    Counted { label: Label, back: Label, argument: u32, site: Site },
    /// Go on in the careful translation.
    Careful { label: Label, offset: u16, flags_saved: bool },
    /// Requests are pending at the head: leave for it.
    Poll { label: Label, flags_saved: bool },
    /// Requests are pending when the trace goes back to its head.
    LoopPoll { label: Label, flags_saved: bool },
    /// The linear page, in S1, leads elsewhere.
    Unverified { label: Label, flags_saved: bool },
    /// The vector registers are not loaded.
    LoadSimd { label: Label, back: Label },
    /// The trace has to end where one looks for requests next.
    EndSoon { label: Label, back: Label },
    /// A branch out.
    Exit { label: Label, target: u64, number: Option<u32>, key: Key },
    /// The guest returns elsewhere than it was called from: to the address in S0. Flags are in AX.
    Elsewhere { label: Label, key: Key },
    /// An instruction done by its handler after all.
    Callout { label: Label, after: Label, site: Site, flags_saved: bool },
    /// The same, where only the handler knows where the guest goes on.
    Hand { label: Label, site: Site, flags_saved: bool },
}

impl Cold {
    /// Whether flags are in AX where it is jumped to.
    fn flags_saved(&self) -> bool {
        match *self {
            Cold::Miss { flags_saved, .. }
            | Cold::Careful { flags_saved, .. }
            | Cold::Poll { flags_saved, .. }
            | Cold::LoopPoll { flags_saved, .. }
            | Cold::Unverified { flags_saved, .. }
            | Cold::Hand { flags_saved, .. }
            | Cold::Callout { flags_saved, .. } => flags_saved,
            Cold::Elsewhere { .. } => true,
            Cold::Counted { .. }
            | Cold::Guess { .. }
            | Cold::LoadSimd { .. }
            | Cold::EndSoon { .. }
            | Cold::Exit { .. } => false,
        }
    }
}

impl Translator {
    pub(super) fn emit_cold(&mut self, head: u16) {
        let depart = self.entries[3];
        self.e.bind(depart);
        self.leave_for(head as u64);
        // Cold code may ask for more of it.
        while let Some(cold) = self.cold.pop() {
            self.flags_saved = cold.flags_saved();
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
                Cold::Guess { label, back, careful, guess, argument, bank, site } => {
                    self.e.bind(label);
                    self.e.gs_add(S0, guess);
                    self.e.gs_store_imm32(jit!(site), site.0);
                    self.e.gs_store_imm32(jit!(guess), argument);
                    self.e.call_to(self.stubs.guess[bank]);
                    // Five bytes, which the routine skips when there is no such page.
                    self.e.jmp(back);
                    self.e.jmp(careful);
                }
                Cold::Counted { label, back, argument, site } => {
                    self.e.bind(label);
                    self.e.gs_store_imm32(jit!(site), site.0);
                    self.e.gs_store_imm32(jit!(guess), argument);
                    self.e.call_to(self.stubs.guessed_enough);
                    self.e.jmp(back);
                }
                Cold::Careful { label, offset, flags_saved } => {
                    self.e.bind(label);
                    if flags_saved {
                        self.restore_flags();
                    }
                    match self.careful_exits.iter().find(|(at, _)| *at == offset) {
                        Some(&(_, exit)) => self.e.jmp(exit),
                        None => {
                            let exit = self.e.label();
                            self.e.bind(exit);
                            self.careful_exits.push((offset, exit));
                            self.go_careful(offset);
                        }
                    }
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
                    // Whole: what came here may be 64-bit code that finds a translation of another kind.
                    self.e.lea_disp32(S0, S1, head as i32);
                    self.e.jmp_to(self.stubs.leave);
                }
                Cold::LoadSimd { label, back } => {
                    self.e.bind(label);
                    self.e.call_to(self.stubs.load_simd);
                    self.e.jmp(back);
                }
                Cold::EndSoon { label, back } => {
                    self.e.bind(label);
                    self.e.gs_load(S0, jit!(signals));
                    self.e.store64_imm_at(Operand { base: S0, index: None, displacement: LIMIT_AT }, -1);
                    self.e.jmp(back);
                }
                Cold::Exit { label, target, number: None, key } => {
                    self.e.bind(label);
                    self.key = key;
                    self.exit(target);
                }
                Cold::Exit { label, target, number: Some(number), .. } => {
                    self.e.bind(label);
                    self.leave_to_link(target, number);
                }
                Cold::Callout { label, after, site, flags_saved } => {
                    self.e.bind(label);
                    if flags_saved {
                        self.restore_flags();
                    }
                    self.e.gs_store_imm32(jit!(site), site.0);
                    self.e.call_to(self.stubs.callout);
                    self.e.jmp(after);
                }
                Cold::Hand { label, site, flags_saved } => {
                    self.e.bind(label);
                    if flags_saved {
                        self.restore_flags();
                    }
                    self.hand(site);
                }
                Cold::Elsewhere { label, key } => {
                    self.e.bind(label);
                    self.key = key;
                    // What was called from here is done with. The bottom stays, whatever it says: beyond it lies the
                    // host's own stack.
                    let bottom = self.e.label();
                    self.e.lea(true, S1, Some(host::RSP), None, 16);
                    self.e.gs_cmp(S1, jit!(host_rsp));
                    self.e.jcc(cc::AE, bottom);
                    self.e.lea(true, host::RSP, Some(host::RSP), None, 16);
                    self.e.bind(bottom);
                    self.restore_flags();
                    self.jump_indirect();
                }
            }
        }
    }
}
