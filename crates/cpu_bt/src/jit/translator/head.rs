//! The head of a trace: its three entries, the poll for requests, loading of vector registers.

use super::Translator;
use super::cold::Cold;
use crate::jit::emit::{Label, cc, host};
use crate::jit::mapping::{S0, S1};
use crate::jit::page_id;
use crate::jit::state::PAGES;
use crate::jit::stubs::jit;
use crate::jit::trace::Trace;

impl Translator {
    pub(super) fn prologue(&mut self, trace: &Trace, head: u16) {
        let live = self.head_live != 0;
        let [direct, verified, forward, _] = self.entries;
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
        if self.bmi2 {
            self.e.rorx(S0, S1, 12);
        } else {
            self.e.mov(S0, S1);
            self.e.shr(S0, 12);
        }
        self.e.and32_imm(S0, PAGES as u32 - 1);
        self.e.gs_cmp_scaled(S1, S0, 3, tags);
        self.e.jcc(cc::NE, fail);
        self.e.gs_cmp32_scaled_imm(S0, 2, ids, page_id(self.gpa, self.key));
        self.cold.push(Cold::Unverified { label: fail, flags_saved: live });
        self.e.jcc(cc::NE, fail);
        self.e.gs_store(jit!(page), S1);
        if live {
            self.restore_flags();
        }
        self.e.align(8, 0);
        self.e.bind(direct);
        let poll = self.e.label();
        self.poll(poll, live);
        // Calls come here too.
        self.e.gs_cmp(host::RSP, jit!(return_stack_end));
        self.e.jcc(cc::B, poll);
        self.cold.push(Cold::Poll { label: poll, flags_saved: live });
        if live {
            self.restore_flags();
        }
        // What is entered from further up in the page need not look for requests: not all of a circle
        // leads down.
        self.e.align(8, 0);
        self.e.bind(forward);
        if trace.simd {
            if live {
                // Long enough to be replaced by a jump in one step, like all that an entry begins with.
                self.save_flags();
            }
            let (load, back) = (self.e.label(), self.e.label());
            self.e.gs_cmp8_imm(jit!(simd_loaded), 0);
            self.e.jcc(cc::E, load);
            self.e.bind(back);
            self.cold.push(Cold::LoadSimd { label: load, back });
            if live {
                self.restore_flags();
            }
        } else {
            self.e.align(8, 7);
        }
        self.mapping.emit_enter(&mut self.e);
        self.e.bind(self.body);
    }

    /// The start of this privilege's bank of a table with `width` bytes an entry.
    pub(super) fn bank(&self, table: i32, width: i32) -> i32 {
        table + self.key.mmu() as i32 * PAGES as i32 * width
    }

    /// Looks for requests. Flags are saved first when they matter, and not restored.
    pub(super) fn poll(&mut self, pending: Label, save: bool) {
        // The first instruction is long enough to be replaced by a jump in one step.
        self.e.gs_load(S0, jit!(signals));
        if save {
            self.save_flags();
        }
        self.e.load32(S0, S0);
        self.e.gs_test32(S0, jit!(poll_mask));
        self.e.jcc(cc::NE, pending);
    }
}
