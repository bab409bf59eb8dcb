//! DIV and IDIV: as themselves where the quotient certainly fits, by their handler otherwise. The host's
//! processor must not raise #DE in translated code.

use super::Translator;
use super::cold::Cold;
use super::lookup::Free;
use crate::block::decode::gpr_number;
use crate::jit::emit::cc;
use crate::jit::groups::Form;
use crate::jit::mapping::{Loc, S0, S1};
use crate::jit::state::Site;
use crate::jit::trace::Step;
use crate::regs::{RAX, RDX};
use iced_x86::{Mnemonic as M, OpKind};

impl Translator {
    pub(super) fn divide(&mut self, step: &Step) {
        let insn = &step.insn;
        let memory = insn.op0_kind() == OpKind::Memory;
        let size = if memory { insn.memory_size().size() } else { insn.op0_register().size() };
        let divisor = gpr_number(insn.op0_register()).filter(|_| !memory);
        let implicit = |register: usize| self.mapping.loc(register as u8) == Loc::Host(register as u8);
        if !matches!(size, 4 | 8)
            || divisor.is_some_and(|guest| matches!(guest as usize, RAX | RDX))
            || !implicit(RAX)
            || !implicit(RDX)
            // The checks spoil the flags, which the frame of #DE shows.
            || self.exact_flags
        {
            return self.callout(step);
        }
        let wide = size == 8;
        let (after, slow) = (self.e.label(), self.e.label());
        let by = match divisor {
            Some(guest) => self.read_register(guest, S1),
            None => {
                let site = Site::new(step.offset, self.mapping, size, false, false);
                let displacement = insn.memory_displacement64() as i32;
                let access = (site, step.live != 0, after);
                let operand = self.operand((Form::of(insn), displacement), 0, Free::Nothing, access);
                if wide {
                    self.e.load64_at(S1, operand)
                } else {
                    self.e.load32_at(S1, operand)
                }
                S1
            }
        };
        self.held = None;
        let rex = |reg: u8, rm: u8| 0x40 | (wide as u8) << 3 | (reg >> 3) << 2 | rm >> 3;
        let modrm = |reg: u8, rm: u8| 0xc0 | (reg & 7) << 3 | rm & 7;
        let (rax, rdx) = (RAX as u8, RDX as u8);
        let signed = insn.mnemonic() == M::Idiv;
        if signed {
            // The dividend is a sign-extended RAX, and the divisor neither 0 nor -1.
            if wide {
                self.e.mov(S0, rax)
            } else {
                self.e.mov32(S0, rax)
            }
            // sar S0, 31 or 63
            self.e.bytes(&[rex(0, S0), 0xc1, modrm(7, S0), size as u8 * 8 - 1]);
            // cmp S0, rdx
            self.e.bytes(&[rex(S0, rdx), 0x3b, modrm(S0, rdx)]);
            self.e.jcc(cc::NE, slow);
            self.e.lea(wide, S0, Some(by), None, 1);
            self.e.cmp_imm(S0, 1);
            self.e.jcc(cc::BE, slow);
        } else {
            // The quotient fits if the high half of the dividend is below the divisor, which is then not 0.
            // cmp rdx, divisor
            self.e.bytes(&[rex(rdx, by), 0x3b, modrm(rdx, by)]);
            self.e.jcc(cc::AE, slow);
        }
        self.e.bytes(&[rex(0, by), 0xf7, modrm(6 + signed as u8, by)]);
        self.e.bind(after);
        let site = Site::new(step.offset, self.mapping, 1, false, false);
        self.cold.push(Cold::Callout { label: slow, after, site, flags_saved: false });
    }
}
