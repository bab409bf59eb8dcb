//! MOVS, STOS and LODS of one element, which old compilers and small decompressors make loops of.

use super::Translator;
use super::cold::Cold;
use crate::jit::emit::{Label, cc, host};
use crate::jit::groups::Form;
use crate::jit::mapping::{S0, S1};
use crate::jit::state::Site;
use crate::jit::strings::Single;
use crate::jit::stubs::jit;
use crate::jit::trace::Step;
use iced_x86::Register;
use x86::reg::rflags;

impl Translator {
    /// Going up; going down, the handler does it. RAX, RSI and RDI are in their namesakes.
    pub(super) fn single_string(&mut self, step: &Step, what: Single) {
        let size = step.insn.memory_size().size();
        let keep = step.needs_flags() || self.exact_flags;
        let (down, after) = (self.e.label(), self.e.label());
        let site = |write| Site::new(step.offset, self.mapping, size, write, false);
        let (read, write) = (site(false), site(true));
        if keep {
            self.save_flags();
        } else {
            self.restore_rax();
        }
        self.held = None;
        self.e.mov_imm(S0, rflags::DF);
        self.e.gs_test32(S0, jit!(system_flags));
        self.e.jcc(cc::NE, down);
        self.cold.push(Cold::Callout { label: down, after, site: read, flags_saved: keep });
        let (source, target) = (self.form_of(Register::RSI), self.form_of(Register::RDI));
        match what {
            Single::Move => {
                self.look_up_at(source, read, keep, after);
                self.e.load_zero_extended(size, S0, S0);
                // Looking up the target needs both scratch registers.
                self.e.gs_store(jit!(target), S0);
                self.look_up_at(target, write, keep, after);
                self.e.gs_load(S1, jit!(target));
                self.e.store_sized(size, S0, S1);
            }
            Single::Store => {
                self.look_up_at(target, write, keep, after);
                self.e.store_sized(size, S0, host::RAX);
            }
            Single::Load => {
                self.look_up_at(source, read, keep, after);
                self.e.load_sized(size, host::RAX, S0);
            }
        }
        let wide = !self.key.compat();
        for (register, moves) in [(host::RSI, what != Single::Store), (host::RDI, what != Single::Load)] {
            if moves {
                self.e.lea(wide, register, Some(register), None, size as i32);
            }
        }
        self.e.bind(after);
    }

    /// Leaves in S0 where the address in a register is for the host.
    fn look_up_at(&mut self, form: Form, site: Site, keep: bool, after: Label) {
        self.address(form, 0);
        self.look_up(site, keep, after);
    }
}
