//! Branches: calls, returns, jumps; the ways out of a trace and the links between traces.

use super::Translator;
use super::cold::Cold;
use super::lookup::Free;
use crate::block::decode::gpr_number;
use crate::interp::condition;
use crate::jit::cache::{Exit, Key};
use crate::jit::emit::{Label, cc, host};
use crate::jit::groups::Form;
use crate::jit::mapping::{S0, S1};
use crate::jit::state::{NO_EXIT, Site, TARGETS};
use crate::jit::stubs::jit;
use crate::jit::trace::{Step, is_direct, target_of};
use iced_x86::{Mnemonic as M, OpKind};

impl Translator {
    /// Emits a branch; true when the trace has ended with it.
    pub(super) fn branch_step(&mut self, step: &Step, head: u16) -> bool {
        let insn = &step.insn;
        let next = step.offset as u64 + insn.len() as u64;
        match insn.mnemonic() {
            M::Ret => {
                let after = self.e.label();
                let operand = self.stack_top(step, after);
                let pop =
                    self.key.width() as i32 + if insn.op_count() > 0 { insn.immediate(0) as i32 } else { 0 };
                self.load_word(S0, operand);
                self.move_stack(pop);
                if !self.mapping.is_canonical() || !self.key.uses_return_stack() {
                    self.restore_flags();
                    self.mapping.emit_leave(&mut self.e);
                }
                if self.key.uses_return_stack() {
                    self.return_if_called();
                } else {
                    self.jump_indirect();
                }
                // The slow way never comes back to a branch.
                self.e.bind(after);
                return true;
            }
            M::Jmp => match insn.op0_kind() {
                _ if is_direct(insn) => {
                    self.branch(target_of(insn), head);
                    return true;
                }
                _ => {
                    let after = self.e.label();
                    self.indirect_target(step, after);
                    self.go_indirect();
                    self.e.bind(after);
                    return true;
                }
            },
            M::Call => {
                let after = self.e.label();
                let direct = is_direct(insn);
                if !direct {
                    self.indirect_target(step, after);
                    self.e.gs_store(jit!(target), S0);
                }
                // In a careful trace the operand is in S0, and S1 is not needed for it.
                let operand = self.stack_below(step, step.live, after, Free::Nothing);
                let scratch = if operand.base == S0 { S1 } else { S0 };
                self.e.gs_load(scratch, jit!(page));
                self.add_to_page(scratch, scratch, next as i32);
                self.store_word(operand, scratch);
                self.held = None;
                self.move_stack(-(self.key.width() as i32));
                let target = direct.then(|| target_of(insn));
                if self.key.uses_return_stack() {
                    self.call(target, scratch, next);
                } else if let Some(target) = target {
                    self.branch(target, head);
                } else {
                    self.e.gs_load(S0, jit!(target));
                    self.go_indirect();
                }
                self.e.bind(after);
                return true;
            }
            _ => {
                // Jcc
                let target = target_of(insn);
                let condition = condition::number(insn);
                if target == head as u64 && self.may_loop() {
                    self.e.jcc(condition, self.turn);
                } else {
                    let label = self.e.label();
                    let mut number = None;
                    if self.mapping.is_canonical() && target < 4096 {
                        // Once linked, the branch itself goes to the target.
                        let patch = self.e.jcc_patchable(condition, label);
                        number = Some(self.note_exit(patch, target));
                    } else {
                        self.e.jcc(condition, label);
                    }
                    self.cold.push(Cold::Exit { label, target, number, key: self.key });
                }
            }
        }
        false
    }

    /// Puts the target of an indirect branch into S0.
    pub(super) fn indirect_target(&mut self, step: &Step, after: Label) {
        match step.insn.op0_kind() {
            OpKind::Register => {
                let guest = gpr_number(step.insn.op0_register()).expect("a general register");
                let register = self.read_register(guest, S0);
                match self.key.compat() {
                    true => self.e.mov32(S0, register),
                    false => self.e.mov(S0, register),
                }
            }
            _ => {
                let site = Site::new(step.offset, self.mapping, self.key.width() as usize, false, false);
                let displacement = step.insn.memory_displacement64() as i32;
                let form = Form::of(&step.insn);
                let operand =
                    self.operand((form, displacement), 0, Free::Nothing, (site, step.live != 0, after));
                self.load_word(S0, operand);
            }
        }
    }

    /// Calls `target`, or what [`JitState::target`](crate::jit::state::JitState) says, on the return stack,
    /// so that the host predicts where the guest returns to. `pushed` has the guest's return address, which lies
    /// at `next` of the page. Touches no flags.
    fn call(&mut self, target: Option<u64>, pushed: u8, next: u64) {
        self.mapping.emit_leave(&mut self.e);
        self.e.push(pushed);
        match target {
            None => {
                let table = self.targets();
                self.e.gs_load(S0, jit!(target));
                self.e.movzx16(S1, S0);
                self.e.gs_call_scaled(S1, table);
            }
            Some(target) => {
                if target >= 4096 {
                    // The other page verifies where it is.
                    self.e.gs_load(S0, jit!(page));
                    self.add_to_page(S0, S0, target as i32);
                }
                let unlinked = self.e.label();
                let patch = self.e.call_patchable(unlinked);
                let number = self.note_exit(patch, target);
                // Where calls lead, the length of the return stack is looked at.
                self.exits.last_mut().expect("just noted").forward = false;
                self.cold.push(Cold::Exit { label: unlinked, target, number: Some(number), key: self.key });
            }
        }
        // A return comes here only with this address in S0.
        self.e.lea(true, host::RSP, Some(host::RSP), None, 8);
        self.add_to_page(S1, S0, -(next as i32));
        self.e.gs_store(jit!(page), S1);
        self.exit_to(next);
    }

    /// Returns to the address in S0 as the host does, if it is what lies on the return stack beside the host's own
    /// address. The flags are mostly away already, for the look at the guest's stack: the comparison costs little here.
    fn return_if_called(&mut self) {
        let elsewhere = self.e.label();
        self.save_flags();
        self.e.cmp_at(S0, host::RSP, 8);
        self.e.jcc(cc::NE, elsewhere);
        self.cold.push(Cold::Elsewhere { label: elsewhere, key: self.key });
        self.restore_flags();
        self.e.ret();
    }

    /// The table that indirect branches of this privilege go through.
    fn targets(&self) -> i32 {
        jit!(targets) + (self.key.mmu() as usize * TARGETS * 8) as i32
    }

    /// Goes to the linear address in S0.
    pub(super) fn go_indirect(&mut self) {
        self.mapping.emit_leave(&mut self.e);
        self.jump_indirect();
    }

    /// Goes to the linear address in S0; the mapping is canonical already.
    pub(super) fn jump_indirect(&mut self) {
        let table = self.targets();
        self.e.movzx16(S1, S0);
        self.e.gs_jmp_scaled(S1, table);
    }

    /// Whether the trace may go back to its own head.
    fn may_loop(&self) -> bool {
        self.loops && self.key == self.head_key
    }

    /// Goes to an offset from the page.
    pub(super) fn branch(&mut self, target: u64, head: u16) {
        if target == head as u64 && self.may_loop() {
            self.e.jmp(self.turn);
            return;
        }
        self.exit(target);
    }

    /// Leaves the trace for `target`, relative to the page.
    pub(super) fn exit(&mut self, target: u64) {
        self.mapping.emit_leave(&mut self.e);
        self.e.gs_load(S0, jit!(page));
        self.add_to_page(S0, S0, target as i32);
        self.exit_to(target);
    }

    /// The same with the target's linear address in S0 and the mapping canonical.
    fn exit_to(&mut self, target: u64) {
        // Unlinked, it notes its number and leaves; linked, the jump goes to the target.
        let unlinked = self.e.label();
        let patch = self.e.jmp_patchable(unlinked);
        let number = self.note_exit(patch, target);
        self.e.bind(unlinked);
        self.e.gs_store_imm32(jit!(exit), number);
        self.e.jmp_to(self.stubs.leave_to_link);
    }

    /// Leaves for `target` and has exit `number` linked to it.
    pub(super) fn leave_to_link(&mut self, target: u64, number: u32) {
        self.e.gs_load(S0, jit!(page));
        self.add_to_page(S0, S0, target as i32);
        self.e.gs_store_imm32(jit!(exit), number);
        self.e.jmp_to(self.stubs.leave_to_link);
    }

    /// Goes on in the careful translation at an offset in the page, from inside the trace.
    pub(super) fn go_careful(&mut self, offset: u16) {
        self.mapping.emit_leave(&mut self.e);
        self.e.gs_load(S0, jit!(page));
        self.add_to_page(S0, S0, offset as i32);
        let unlinked = self.e.label();
        let patch = self.e.jmp_patchable(unlinked);
        let number = self.note_exit_to(patch, offset as u64, self.key.with_care());
        self.e.bind(unlinked);
        self.e.gs_store_imm8(jit!(careful), 1);
        self.e.gs_store_imm32(jit!(exit), number);
        self.e.jmp_to(self.stubs.leave_to_link);
    }

    pub(super) fn note_exit(&mut self, patch: u64, target: u64) -> u32 {
        self.note_exit_to(patch, target, self.key.without_care())
    }

    fn note_exit_to(&mut self, patch: u64, target: u64, key: Key) -> u32 {
        let forward = target > self.gpa & 0xfff && !self.looks_next;
        let exit = Exit {
            patch,
            page: self.gpa >> 12,
            key,
            same_page: target < 4096,
            forward,
            to: NO_EXIT,
            before: NO_EXIT,
        };
        self.exits.push(exit);
        self.first_exit + self.exits.len() as u32 - 1
    }

    /// Leaves translated code for an offset in the page, without linking.
    pub(super) fn leave_for(&mut self, target: u64) {
        self.e.gs_load(S0, jit!(page));
        self.add_to_page(S0, S0, target as i32);
        self.e.jmp_to(self.stubs.leave);
    }
}
