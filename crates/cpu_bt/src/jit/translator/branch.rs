//! Branches: calls, returns, jumps; the ways out of a trace and the links between traces.

use super::Translator;
use super::cold::Cold;
use crate::block::decode::gpr_number;
use crate::interp::condition;
use crate::jit::cache::Exit;
use crate::jit::emit::{Label, host};
use crate::jit::mapping::{S0, S1};
use crate::jit::state::{Site, TARGETS};
use crate::jit::stubs::jit;
use crate::jit::trace::Step;
use iced_x86::{Mnemonic as M, OpKind};

impl Translator {
    /// Emits a branch; true when the trace has ended with it.
    pub(super) fn branch_step(&mut self, step: &Step, head: u16) -> bool {
        let insn = &step.insn;
        let next = step.offset as u64 + insn.len() as u64;
        match insn.mnemonic() {
            M::Ret => {
                let after = self.e.label();
                self.stack_read(step, after);
                let pop = 8 + if insn.op_count() > 0 { insn.immediate(0) as i32 } else { 0 };
                self.e.lea_disp32(host::R15, host::R15, pop);
                self.e.mov(S0, S1);
                self.go_indirect();
                // The slow way never comes back to a branch.
                self.e.bind(after);
                return true;
            }
            M::Jmp => match insn.op0_kind() {
                OpKind::NearBranch64 => {
                    self.branch(insn.near_branch_target(), head);
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
                let direct = insn.op0_kind() == OpKind::NearBranch64;
                if !direct {
                    self.indirect_target(step, after);
                    self.e.gs_store(jit!(target), S0);
                }
                self.stack_write(step, after);
                self.e.gs_load(S1, jit!(page));
                self.e.lea_disp32(S1, S1, next as i32);
                self.e.store64(S0, S1);
                self.e.lea_disp32(host::R15, host::R15, -8);
                if direct {
                    self.branch(insn.near_branch_target(), head);
                } else {
                    self.e.gs_load(S0, jit!(target));
                    self.go_indirect();
                }
                self.e.bind(after);
                return true;
            }
            _ => {
                // Jcc
                let target = insn.near_branch_target();
                let condition = condition::number(insn);
                if target == head as u64 && self.key == self.head_key {
                    let label = self.e.label();
                    self.e.jcc(condition, label);
                    self.cold.push(Cold::Loop { label });
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
                self.e.mov(S0, register);
            }
            _ => {
                self.address(&step.insn);
                let site = Site::new(step.offset, self.mapping, 8, false, false);
                self.look_up(site, step.live != 0, after);
                self.e.load64(S0, S0);
            }
        }
    }

    /// Goes to the linear address in S0.
    pub(super) fn go_indirect(&mut self) {
        self.mapping.emit_leave(&mut self.e);
        let table = jit!(targets) + (self.key.mmu() as usize * TARGETS * 8) as i32;
        self.e.movzx16(S1, S0);
        self.e.gs_jmp_scaled(S1, table);
    }

    /// Goes to an offset from the page.
    pub(super) fn branch(&mut self, target: u64, head: u16) {
        if target == head as u64 && self.key == self.head_key {
            self.loop_back();
            return;
        }
        self.exit(target);
    }

    /// Leaves the trace for `target`, relative to the page.
    pub(super) fn exit(&mut self, target: u64) {
        self.mapping.emit_leave(&mut self.e);
        self.e.gs_load(S0, jit!(page));
        self.e.lea_disp32(S0, S0, target as i32);
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
        self.e.lea_disp32(S0, S0, target as i32);
        self.e.gs_store_imm32(jit!(exit), number);
        self.e.jmp_to(self.stubs.leave_to_link);
    }

    pub(super) fn note_exit(&mut self, patch: u64, target: u64) -> u32 {
        let exit = Exit { patch, page: self.gpa >> 12, key: self.key, same_page: target < 4096 };
        self.exits.push(exit);
        self.first_exit + self.exits.len() as u32 - 1
    }

    pub(super) fn loop_back(&mut self) {
        let label = self.e.label();
        let live = self.head_live != 0;
        self.poll(label, live);
        if live {
            self.restore_flags();
        }
        self.cold.push(Cold::LoopPoll { label, flags_saved: live });
        let body = self.body;
        self.e.jmp(body);
    }

    /// Leaves translated code for an offset in the page, without linking.
    pub(super) fn leave_for(&mut self, target: u64) {
        self.e.gs_load(S0, jit!(page));
        self.e.lea_disp32(S0, S0, target as i32);
        self.e.jmp_to(self.stubs.leave);
    }
}
