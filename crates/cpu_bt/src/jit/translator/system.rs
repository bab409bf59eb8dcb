//! What a supervisor does often enough to stay in translated code for.

use super::Translator;
use super::lookup::Free;
use crate::jit::emit::host;
use crate::jit::liveness;
use crate::jit::mapping::S1;
use crate::jit::stubs::jit;
use crate::jit::trace::Step;
use crate::signals::signal;
use x86::reg::rflags;

impl Translator {
    /// CLI and STI of a supervisor: RFLAGS.IF, and whether interrupts end traces.
    pub(super) fn set_interrupts(&mut self, step: &Step, enable: bool) {
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
    pub(super) fn push_flags(&mut self, step: &Step) {
        let after = self.e.label();
        // The flags go to S1.
        let operand = self.stack_below(step, liveness::ALL, after, Free::S1);
        self.e.host_flags_to(S1);
        let keep = step.live != 0;
        if keep {
            self.save_flags();
        }
        self.e.and32_imm(S1, rflags::STATUS as u32);
        self.e.gs_or(S1, jit!(system_flags));
        self.e.store64_at(operand, S1);
        if keep {
            self.restore_flags();
        }
        self.e.lea(true, host::R15, Some(host::R15), None, -8);
        self.e.bind(after);
    }
}
