//! PUSH, POP, LEAVE, and the stack accesses of calls and returns.

use super::Translator;
use super::lookup::Free;
use crate::block::decode::gpr_number;
use crate::jit::emit::{Label, Operand, host};
use crate::jit::groups::Form;
use crate::jit::mapping::{Loc, S0, S1, slot};
use crate::jit::state::Site;
use crate::jit::stubs::jit;
use crate::jit::trace::Step;
use crate::regs::RSP;
use iced_x86::{OpKind, Register};

impl Translator {
    /// Loads what a push of the present code stores.
    pub(super) fn load_word(&mut self, to: u8, operand: Operand) {
        match self.key.compat() {
            true => self.e.load32_at(to, operand),
            false => self.e.load64_at(to, operand),
        }
    }

    /// Stores as much as a push of the present code does.
    pub(super) fn store_word(&mut self, operand: Operand, from: u8) {
        match self.key.compat() {
            true => self.e.store32_at(operand, from),
            false => self.e.store64_at(operand, from),
        }
    }

    /// How many bytes a push of the present code stores.
    fn word(&self) -> i32 {
        self.key.width() as i32
    }

    /// An address that is a register, as wide as the present code has them.
    pub(super) fn form_of(&self, register: Register) -> Form {
        Form::register(if self.key.compat() { register.full_register32() } else { register })
    }

    /// Where the word at the top of the stack is for the host.
    pub(super) fn stack_top(&mut self, step: &Step, after: Label) -> Operand {
        let site = Site::new(step.offset, self.mapping, self.word() as usize, false, false);
        let form = self.form_of(Register::RSP);
        self.operand((form, 0), 1, Free::Nothing, (site, step.live != 0, after))
    }

    /// Where the word below the top of the stack are for the host. `live` are the flags that matter.
    pub(super) fn stack_below(&mut self, step: &Step, live: u32, after: Label, free: Free) -> Operand {
        let site = Site::new(step.offset, self.mapping, self.word() as usize, true, false);
        self.operand((self.form_of(Register::RSP), -self.word()), 1, free, (site, live != 0, after))
    }

    pub(super) fn push(&mut self, step: &Step) {
        let after = self.e.label();
        if step.insn.op0_kind() == OpKind::Memory {
            self.push_memory(step, after);
            self.move_stack(-self.word());
            self.e.bind(after);
            return;
        }
        let guest = gpr_number(step.insn.op0_register()).filter(|_| step.insn.op0_kind() == OpKind::Register);
        let absent = guest.is_some_and(|guest| self.mapping.loc(guest) == Loc::Memory);
        let free = if absent { Free::S1 } else { Free::Nothing };
        let operand = self.stack_below(step, step.live, after, free);
        match guest {
            Some(guest) => {
                let register = self.read_register(guest, S1);
                self.store_word(operand, register);
            }
            _ if self.key.compat() => self.e.store32_imm_at(operand, step.insn.immediate(0) as i32),
            _ => self.e.store64_imm_at(operand, step.insn.immediate(0) as i32),
        }
        self.move_stack(-self.word());
        self.e.bind(after);
    }

    /// Puts a memory operand below the top of the stack.
    fn push_memory(&mut self, step: &Step, after: Label) {
        let site = Site::new(step.offset, self.mapping, self.word() as usize, false, false);
        let access = (Form::of(&step.insn), step.insn.memory_displacement64() as i32);
        let operand = self.operand(access, 0, Free::Nothing, (site, step.needs_flags(), after));
        self.load_word(S0, operand);
        // Finding the place on the stack may need both scratch registers.
        self.e.gs_store(jit!(target), S0);
        let operand = self.stack_below(step, step.live, after, Free::Nothing);
        let scratch = if operand.base == S0 { S1 } else { S0 };
        self.e.gs_load(scratch, jit!(target));
        self.store_word(operand, scratch);
        // Nor is anything in S1 when the slow way has done the instruction.
        self.held = None;
    }

    pub(super) fn pop(&mut self, step: &Step) {
        let after = self.e.label();
        let operand = self.stack_top(step, after);
        let guest = gpr_number(step.insn.op0_register()).expect("POP of a register");
        match self.mapping.loc(guest) {
            // What is popped into the stack pointer is what counts.
            Loc::Host(host::R15) => self.load_word(host::R15, operand),
            Loc::Host(to) => {
                self.load_word(to, operand);
                self.move_stack(self.word());
            }
            Loc::Memory => {
                self.load_word(S0, operand);
                self.e.gs_store(slot(guest), S0);
                self.move_stack(self.word());
            }
        }
        debug_assert!(guest as usize != RSP || self.mapping.loc(guest) == Loc::Host(host::R15));
        self.e.bind(after);
    }

    pub(super) fn leave(&mut self, step: &Step) {
        let after = self.e.label();
        let site = Site::new(step.offset, self.mapping, self.word() as usize, false, false);
        let form = self.form_of(Register::RBP);
        let operand = self.operand((form, 0), 1, Free::Nothing, (site, step.live != 0, after));
        self.e.lea(!self.key.compat(), host::R15, Some(host::RBP), None, self.word());
        self.load_word(host::RBP, operand);
        self.e.bind(after);
    }
}
