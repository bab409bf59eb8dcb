//! PUSH, POP, LEAVE, and the stack accesses of calls and returns.

use super::Translator;
use crate::block::decode::gpr_number;
use crate::jit::emit::{Label, host};
use crate::jit::mapping::{Loc, S0, S1, slot};
use crate::jit::state::Site;
use crate::jit::trace::Step;
use crate::regs::RSP;
use iced_x86::OpKind;

impl Translator {
    /// Loads eight bytes from the stack into S1.
    pub(super) fn stack_read(&mut self, step: &Step, after: Label) {
        self.e.mov(S0, host::R15);
        let site = Site::new(step.offset, self.mapping, 8, false, false);
        self.look_up(site, step.live != 0, after);
        self.e.load64(S1, S0);
    }

    /// Leaves the host address of the eight bytes below the stack pointer in S0.
    pub(super) fn stack_write(&mut self, step: &Step, after: Label) {
        self.stack_write_keeping(step, step.live, after);
    }

    pub(super) fn stack_write_keeping(&mut self, step: &Step, live: u32, after: Label) {
        self.e.lea_disp32(S0, host::R15, -8);
        let site = Site::new(step.offset, self.mapping, 8, true, false);
        self.look_up(site, live != 0, after);
    }

    pub(super) fn push(&mut self, step: &Step) {
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

    pub(super) fn pop(&mut self, step: &Step) {
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

    pub(super) fn leave(&mut self, step: &Step) {
        let after = self.e.label();
        self.e.mov(S0, host::RBP);
        let site = Site::new(step.offset, self.mapping, 8, false, false);
        self.look_up(site, step.live != 0, after);
        self.e.load64(S1, S0);
        self.e.lea_disp32(host::R15, host::RBP, 8);
        self.e.mov(host::RBP, S1);
        self.e.bind(after);
    }
}
