//! The head of a trace: its three entries, the poll for requests, loading of vector registers.

use super::Translator;
use super::cold::Cold;
use crate::jit::emit::{Label, cc, host};
use crate::jit::mapping::{S0, S1};
use crate::jit::page_id;
use crate::jit::state::{PAGES, Site};
use crate::jit::stubs::jit;
use crate::jit::trace::{Step, Trace};
use crate::signals::LIMIT_AT;

impl Translator {
    pub(super) fn prologue(&mut self, trace: &Trace, head: u16) {
        let live = self.head_live != 0;
        let [direct, verified, forward, _] = self.entries;
        // The verified entry first: it falls through to the direct one.
        self.e.align(16, 0);
        self.e.bind(verified);
        let (ids, tags) = (self.bank(jit!(page_ids), 4), self.bank(jit!(page_tags), 8));
        self.e.lea_disp32(S1, S0, -(head as i32));
        // Whether or not they matter here: what comes here may be on its way elsewhere, where they do.
        self.save_flags();
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
        self.cold.push(Cold::Unverified { label: fail, flags_saved: true });
        self.e.jcc(cc::NE, fail);
        self.e.gs_store(jit!(page), S1);
        // Flags that are saved already are saved once: the next entry's own way of doing so is left out.
        let (polling, checking) = (self.e.label(), self.e.label());
        if live {
            self.e.gs_load(S0, jit!(signals));
            self.skip_to(polling);
        } else {
            self.restore_rax();
        }
        self.e.align(8, 0);
        self.e.bind(direct);
        let poll = self.e.label();
        // Long enough to be replaced by a jump in one step, like all that an entry begins with.
        self.e.gs_load(S0, jit!(signals));
        if live {
            self.save_flags();
        }
        self.e.bind(polling);
        // Calls come here too: the return stack must have room.
        self.look_at_limit(poll);
        self.cold.push(Cold::Poll { label: poll, flags_saved: live });
        // What is entered from further up in the page need not look for requests: not all of a circle
        // leads down.
        if trace.simd {
            if live {
                self.skip_to(checking);
            }
            self.e.align(8, 0);
            self.e.bind(forward);
            if live {
                self.save_flags();
            }
            self.e.bind(checking);
            let (load, back) = (self.e.label(), self.e.label());
            self.e.gs_cmp8_imm(jit!(simd_loaded), 0);
            self.e.jcc(cc::E, load);
            self.e.bind(back);
            self.cold.push(Cold::LoadSimd { label: load, back });
        } else {
            self.restore_flags();
            self.e.align(8, 0);
            self.e.bind(forward);
            self.e.align(8, 7);
        }
        self.mapping.emit_enter(&mut self.e);
        if trace.loops {
            self.restore_flags();
            // Each turn looks for requests; the first has done so.
            let first = self.e.label();
            self.e.jmp(first);
            self.e.align(16, 0);
            self.e.bind(self.turn);
            let pending = self.e.label();
            self.e.gs_load(S0, jit!(signals));
            if live {
                self.save_flags();
            }
            self.look_at_limit(pending);
            self.cold.push(Cold::LoopPoll { label: pending, flags_saved: live });
            self.restore_flags();
            self.e.bind(first);
        }
    }

    /// Goes to a place where the flags are saved too; what follows here is reached in another way, with flags at home.
    fn skip_to(&mut self, label: Label) {
        self.e.jmp(label);
        self.flags_saved = false;
    }

    /// Makes sure that the page behind the present one is frame `second`, in which the first instruction ends.
    /// Otherwise the handler takes over: what begins here may be another instruction, and of another length.
    pub(super) fn verify_second_page(&mut self, step: &Step, second: u64) {
        let (ids, tags) = (self.bank(jit!(page_ids), 4), self.bank(jit!(page_tags), 8));
        self.e.gs_load(S1, jit!(page));
        self.e.lea_disp32(S1, S1, 0x1000);
        self.save_flags();
        let label = self.e.label();
        self.e.mov(S0, S1);
        self.e.shr(S0, 12);
        self.e.and32_imm(S0, PAGES as u32 - 1);
        self.e.gs_cmp_scaled(S1, S0, 3, tags);
        self.e.jcc(cc::NE, label);
        self.e.gs_cmp32_scaled_imm(S0, 2, ids, page_id(second << 12, self.key));
        self.e.jcc(cc::NE, label);
        self.restore_flags();
        let site = Site::new(step.offset, self.mapping, 1, false, false);
        self.cold.push(Cold::Hand { label, site, flags_saved: true });
    }

    /// The start of this privilege's bank of a table with `width` bytes an entry.
    pub(super) fn bank(&self, table: i32, width: i32) -> i32 {
        table + self.key.mmu() as i32 * PAGES as i32 * width
    }

    /// Goes to `label` if a request raised the limit of the return stack, or that is reached. S0 has the address of
    /// the requests. Spoils flags.
    fn look_at_limit(&mut self, label: Label) {
        self.e.cmp_at(host::RSP, S0, LIMIT_AT);
        self.e.jcc(cc::B, label);
    }
}
