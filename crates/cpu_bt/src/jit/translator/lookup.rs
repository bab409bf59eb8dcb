//! Memory operands: the linear address, and its look-up in the software TLB.

use super::Translator;
use super::cold::Cold;
use crate::block::decode::gpr_number;
use crate::cpu::Cpu;
use crate::jit::emit::{Label, cc};
use crate::jit::mapping::{S0, S1};
use crate::jit::state::Site;
use crate::jit::stubs::jit;
use crate::mmu::tlb::{Entry, Tlb};
use crate::regs::Regs;
use iced_x86::{Instruction, Register};
use std::mem::offset_of;
use x86::Segment;

impl Translator {
    /// Puts the linear address of the memory operand into S0.
    pub(super) fn address(&mut self, insn: &Instruction) {
        let base = insn.memory_base();
        let displacement = insn.memory_displacement64() as i32;
        if base == Register::RIP {
            // Decoded as if the page stood at 0, so the address is relative to the page.
            self.e.gs_load(S0, jit!(page));
            self.e.lea_disp32(S0, S0, displacement);
        } else {
            let wide = insn.memory_base().size() != 4 && insn.memory_index().size() != 4;
            let base = gpr_number(base).map(|guest| self.read_register(guest, S0));
            let index = gpr_number(insn.memory_index()).map(|guest| self.read_register(guest, S1));
            let scale = insn.memory_index_scale().trailing_zeros() as u8;
            match (base, index) {
                (None, None) => self.e.mov_imm(S0, displacement as i64 as u64),
                _ => self.e.lea(wide, S0, base, index.map(|index| (index, scale)), displacement),
            }
        }
        let segment = match insn.memory_segment() {
            Register::FS => x86::state::seg::FS,
            Register::GS => x86::state::seg::GS,
            _ => return,
        };
        let at = offset_of!(Cpu, regs)
            + offset_of!(Regs, seg)
            + segment * size_of::<Segment>()
            + offset_of!(Segment, base);
        self.e.gs_load(S1, at as i32);
        self.e.lea(true, S0, Some(S0), Some((S1, 0)), 0);
    }

    /// Turns the linear address in S0 into a host address, or goes the slow way. Uses S1. `keep_flags`
    /// when flags matter. `after` is where an instruction goes on that the slow way has done.
    pub(super) fn look_up(&mut self, site: Site, keep_flags: bool, after: Label) {
        let keep_flags = keep_flags || self.exact_flags;
        let (miss, back) = (self.e.label(), self.e.label());
        if keep_flags {
            self.save_flags();
        }
        let array = (self.key.mmu() as usize) * size_of::<[Entry; crate::mmu::tlb::ENTRIES]>()
            + if site.writes() { offset_of!(Tlb, write) } else { offset_of!(Tlb, read) };
        let table = (offset_of!(Cpu, tlb) + array) as i32;
        const { assert!(size_of::<Entry>() == 16 && offset_of!(Entry, page) == 0 && offset_of!(Entry, host) == 8) };
        if self.bmi2 {
            self.e.rorx(S1, S0, 8);
        } else {
            self.e.mov(S1, S0);
            self.e.shr(S1, 8);
        }
        self.e.and32_imm(S1, (crate::mmu::tlb::ENTRIES as u32 - 1) << 4);
        self.e.gs_sub_indexed(S0, S1, table);
        if site.aligned() {
            self.e.test8_imm(S0, site.len() as u8 - 1);
            self.e.jcc(cc::NE, miss);
        }
        self.e.cmp_imm(S0, 4096 - site.len() as i32);
        self.e.jcc(cc::A, miss);
        self.e.gs_add_indexed(S0, S1, table + 8);
        self.e.bind(back);
        if keep_flags {
            self.restore_flags();
        }
        self.cold.push(Cold::Miss { label: miss, back, after, site, table, flags_saved: keep_flags });
    }
}
