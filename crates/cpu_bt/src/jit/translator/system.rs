//! What a supervisor does often enough to stay in translated code for.

use super::Translator;
use super::cold::Cold;
use super::lookup::Free;
use crate::block::decode::{gpr_number, segment_number};
use crate::cpu::{Cpu, Mode, SystemRegs};
use crate::jit::emit::{cc, host};
use crate::jit::fast::Fast;
use crate::jit::liveness;
use crate::jit::mapping::{Mapping, S0, S1};
use crate::jit::state::Site;
use crate::jit::stubs::jit;
use crate::jit::trace::Step;
use crate::mmu::tlb::MmuIndex;
use crate::regs::Regs;
use crate::signals::{WORD_AT, signal};
use iced_x86::Mnemonic;
use std::mem::offset_of;
use x86::Segment;
use x86::reg::{cr4, rflags};

impl Translator {
    /// CLI and STI of a supervisor: RFLAGS.IF. An interrupt that waited for it ends the trace.
    pub(super) fn set_interrupts(&mut self, step: &Step, enable: bool) {
        let keep = step.live != 0;
        if keep {
            self.save_flags();
        }
        let flag = rflags::IF as u32;
        if enable {
            self.looks_next = true;
            self.e.gs_or32_imm(jit!(system_flags), flag);
            self.e.gs_load(S0, jit!(signals));
            self.e.test32_imm_at(S0, WORD_AT, signal::INTERRUPT);
            let (label, back) = (self.e.label(), self.e.label());
            self.e.jcc(cc::NE, label);
            self.e.bind(back);
            self.cold.push(Cold::EndSoon { label, back });
        } else {
            self.e.gs_and32_imm(jit!(system_flags), !flag);
        }
        if keep {
            self.restore_flags();
        }
    }

    /// STAC and CLAC of a supervisor: RFLAGS.AC, and through which arrays memory is reached.
    pub(super) fn set_access(&mut self, step: &Step, allow: bool) {
        let key = self.key.with_ac(allow).expect("a supervisor");
        let keep = step.live != 0;
        if keep {
            self.save_flags();
        }
        match allow {
            true => self.e.gs_or32_imm(jit!(system_flags), rflags::AC as u32),
            false => self.e.gs_and32_imm(jit!(system_flags), !rflags::AC as u32),
        }
        if keep {
            self.restore_flags();
        }
        if key.mmu() != self.key.mmu() {
            const { assert!(size_of::<MmuIndex>() == 1) };
            let data = offset_of!(Cpu, mode) + offset_of!(Mode, data);
            self.e.gs_store8_imm(data as i32, key.mmu() as u8);
        }
        self.key = key;
    }

    /// SYSCALL of a user and SYSRET of a supervisor: by a common routine, which knows when to call the
    /// handler.
    pub(super) fn system_call(&mut self, step: &Step) {
        self.mapping.emit_leave(&mut self.e);
        let site = Site::new(step.offset, Mapping::CANONICAL, 1, false, false);
        self.e.gs_store_imm32(jit!(site), site.0);
        match step.insn.mnemonic() {
            Mnemonic::Syscall => {
                self.e.gs_load(S0, jit!(page));
                self.e.lea_disp32(S0, S0, step.offset as i32 + step.insn.len() as i32);
                self.e.jmp_to(self.stubs.syscall);
            }
            _ => self.e.jmp_to(self.stubs.sysret),
        }
    }

    /// RDTSC and RDTSCP where nothing forbids them. Touches no flags.
    pub(super) fn read_tsc(&mut self, with_id: bool) {
        let (rax, rdx) = (host::RAX, host::RDX);
        self.held = None;
        self.e.bytes(&[0x0f, 0x31]); // rdtsc
        self.e.mov(S0, rdx);
        self.e.rorx(S0, S0, 32);
        self.e.gs_load(S1, jit!(fast) + offset_of!(Fast, tsc_offset) as i32);
        self.e.lea(true, rax, Some(rax), Some((S0, 0)), 0);
        self.e.lea(true, rax, Some(rax), Some((S1, 0)), 0);
        self.e.mov(rdx, rax);
        self.e.rorx(rdx, rdx, 32);
        self.e.mov32(rdx, rdx);
        self.e.mov32(rax, rax);
        if with_id {
            self.e.gs_load(host::RCX, (offset_of!(Cpu, sys) + offset_of!(SystemRegs, tsc_aux)) as i32);
            self.e.mov32(host::RCX, host::RCX);
        }
    }

    /// SWAPGS of a supervisor.
    pub(super) fn swap_gs(&mut self) {
        let base = segment(x86::state::seg::GS) + offset_of!(Segment, base) as i32;
        let kernel = offset_of!(Cpu, sys) + offset_of!(SystemRegs, kernel_gs_base);
        self.held = None;
        self.e.gs_load(S0, base);
        self.e.gs_load(S1, kernel as i32);
        self.e.gs_store(base, S1);
        self.e.gs_store(kernel as i32, S0);
    }

    /// MOV of a segment register to a general one. Touches no flags.
    pub(super) fn read_selector(&mut self, step: &Step) {
        let guest = gpr_number(step.insn.op0_register()).expect("a general register");
        let number = segment_number(step.insn.op1_register()) as usize;
        self.held = None;
        self.e.gs_load16(S0, segment(number) + offset_of!(Segment, selector) as i32);
        self.put_register(guest, step.insn.op0_register().size());
    }

    /// RDFSBASE, WRFSBASE and their kin, with 64 bits. What they refuse, the handler does.
    pub(super) fn segment_base(&mut self, step: &Step) {
        let guest = gpr_number(step.insn.op0_register()).expect("a general register");
        let (number, write) = match step.insn.mnemonic() {
            Mnemonic::Rdfsbase => (x86::state::seg::FS, false),
            Mnemonic::Rdgsbase => (x86::state::seg::GS, false),
            Mnemonic::Wrfsbase => (x86::state::seg::FS, true),
            _ => (x86::state::seg::GS, true),
        };
        let base = segment(number) + offset_of!(Segment, base) as i32;
        let cr4 = (offset_of!(Cpu, sys) + offset_of!(SystemRegs, cr4)) as i32;
        let keep = step.needs_flags() || self.exact_flags;
        let (label, after) = (self.e.label(), self.e.label());
        self.held = None;
        if write {
            let register = self.read_register(guest, S0);
            self.e.mov(S0, register);
            self.e.mov(S1, S0);
        }
        if keep {
            self.save_flags();
        }
        const { assert!(cr4::FSGSBASE == 1 << 16) };
        self.e.gs_test8_imm(cr4 + 2, 1);
        self.e.jcc(cc::E, label);
        if write {
            self.e.shl(S1, 16);
            self.e.sar(S1, 16);
            self.e.cmp(S1, S0);
            self.e.jcc(cc::NE, label);
        }
        if keep {
            self.restore_flags();
        }
        if write {
            self.e.gs_store(base, S0);
        } else {
            self.e.gs_load(S0, base);
            self.put_register(guest, 8);
        }
        self.e.bind(after);
        let site = Site::new(step.offset, self.mapping, 1, false, false);
        self.cold.push(Cold::Callout { label, after, site, flags_saved: keep });
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

/// Where a segment register is, from the start of the vCPU.
fn segment(number: usize) -> i32 {
    (offset_of!(Cpu, regs) + offset_of!(Regs, seg) + number * size_of::<Segment>()) as i32
}
