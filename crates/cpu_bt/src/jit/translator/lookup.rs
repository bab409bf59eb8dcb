//! Memory operands: the linear address, and its look-up in the software TLB.

use super::Translator;
use super::cold::Cold;
use crate::block::decode::gpr_number;
use crate::cpu::Cpu;
use crate::jit::emit::{Label, Operand, cc};
use crate::jit::groups::Form;
use crate::jit::guessing::Guessing;
use crate::jit::mapping::{Loc, S0, S1};
use crate::jit::state::Site;
use crate::jit::stubs::{self, jit};
use crate::jit::trace::Step;
use crate::mmu::guess::{Guess, GuessBank};
use crate::regs::Regs;
use iced_x86::Register;
use std::mem::offset_of;
use x86::Segment;

/// Which scratch register the instruction needs beside its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Free {
    Nothing,
    S1,
}

impl Translator {
    /// Makes an access possible: returns where it is for the host. `slot` tells which of the step's accesses
    /// it is, `free` which scratch register has to stay free for the instruction itself. `keep_flags` when
    /// flags matter. `after` is where an instruction goes on that the slow way has done.
    ///
    /// In a careful trace the operand is looked up here. Elsewhere its group has been checked already.
    pub(super) fn operand(
        &mut self,
        (form, displacement): (Form, i32),
        slot: usize,
        free: Free,
        (site, keep_flags, after): (Site, bool, Label),
    ) -> Operand {
        let Some(group) = self.groups.of_step.get(self.at).and_then(|of_step| of_step[slot]) else {
            self.address(form, displacement);
            self.look_up(site, keep_flags, after);
            return Operand::at(S0);
        };
        if self.found.take() == Some(group) {
            return Operand::at(S0);
        }
        let base = gpr_number(form.base).map(|guest| self.mapping.loc(guest));
        let index = gpr_number(form.index).map(|guest| self.mapping.loc(guest));
        let plain = form.segment == Register::None && form.is_wide();
        match (base, index) {
            (Some(Loc::Host(base)), None) if plain => {
                self.addend(group);
                self.operand_of(base, Some(S1), displacement, free)
            }
            (None, None) if plain && form.base == Register::None => {
                self.addend(group);
                self.operand_of(S1, None, displacement, free)
            }
            (None, None) if plain => {
                // Relative to the page.
                self.addend(group);
                self.e.gs_load(S0, jit!(page));
                self.operand_of(S0, Some(S1), displacement, free)
            }
            (Some(Loc::Host(base)), Some(Loc::Host(index))) if plain => {
                self.addend(group);
                self.e.lea(true, S0, Some(base), Some((index, form.scale)), displacement);
                self.operand_of(S0, Some(S1), 0, free)
            }
            _ => {
                self.address(form, displacement);
                self.addend(group);
                self.operand_of(S0, Some(S1), 0, free)
            }
        }
    }

    /// An operand, computed into S0 if S1 has to be free.
    fn operand_of(&mut self, base: u8, index: Option<u8>, displacement: i32, free: Free) -> Operand {
        match free {
            Free::Nothing => Operand { base, index, displacement },
            Free::S1 => {
                self.e.lea(true, S0, Some(base), index.map(|index| (index, 0)), displacement);
                self.held = None;
                Operand::at(S0)
            }
        }
    }

    /// Where the guess of a group is, from the start of the vCPU.
    fn guess(&self, group: usize) -> i32 {
        self.bank_of(self.groups.list[group].write)
            + self.guess_numbers[group] as i32 * size_of::<Guess>() as i32
    }

    /// Where the guesses for reads or writes are, from the start of the vCPU.
    fn bank_of(&self, write: bool) -> i32 {
        stubs::guesses(self.key.mmu(), write) + offset_of!(GuessBank, entries) as i32
    }

    /// Where the addend of a group is, from the start of the vCPU. That of a page that was looked up is for
    /// this trace only: the number may be another's too.
    fn addend_place(&self, group: usize) -> i32 {
        match self.groups.list[group].looked_up() {
            false => self.guess(group) + offset_of!(Guess, addend) as i32,
            true => {
                let bank = stubs::guesses(self.key.mmu(), self.groups.list[group].write);
                bank + offset_of!(GuessBank, looked_up) as i32 + self.guess_numbers[group] as i32 * 8
            }
        }
    }

    /// Loads the addend of a group into S1, if it is not there.
    fn addend(&mut self, group: u16) {
        if self.held != Some(group) {
            let addend = self.addend_place(group as usize);
            self.e.gs_load(S1, addend);
            self.held = Some(group);
        }
    }

    /// Emits the checks that stand before the present step.
    pub(super) fn checks(&mut self, step: &Step) {
        self.found = None;
        for number in 0..self.groups.list.len() {
            if self.groups.list[number].check_at == self.at {
                self.check(step, number);
            }
        }
    }

    /// Checks that the range of a group lies in the page that was guessed.
    fn check(&mut self, step: &Step, number: usize) {
        let group = &self.groups.list[number];
        let (form, displacement, span, align) =
            (group.form, group.low_displacement(), group.span(), group.align);
        // The only access follows, and nothing needs S0 before it.
        let later = self.groups.list[number + 1..].iter().any(|later| later.check_at == self.at);
        let operand = self.groups.of_step[self.at][0] == Some(number as u16);
        let at_once = group.single && operand && !later;
        let (write, first, looked_up) = (group.write, group.first, group.looked_up());
        let counted = matches!(group.guessing, Some(Guessing::Counted(_)));
        let guess = self.guess(number);
        let keep = step.needs_flags() || self.exact_flags;
        if !keep {
            self.restore_rax();
        } else if [form.base, form.index].into_iter().any(|register| gpr_number(register) == Some(0)) {
            self.restore_flags();
        }
        self.address(form, displacement);
        if keep {
            self.save_flags();
        }
        let careful = self.e.label();
        self.cold.push(Cold::Careful { label: careful, offset: step.offset, flags_saved: keep });
        if looked_up {
            // By the table, which also gives the addend.
            self.held = None;
            let table = self.table(write);
            self.table_index();
            self.e.gs_sub_indexed(S0, S1, table);
            self.check_range(align, span, careful);
            if at_once {
                self.e.gs_add_indexed(S0, S1, table + 8);
                self.found = Some(number as u16);
                return;
            }
            self.e.gs_load_indexed(S0, S1, table + 8);
            self.e.gs_sub_indexed(S0, S1, table);
            self.e.mov(S1, S0);
            let addend = self.addend_place(number);
            self.e.gs_store(addend, S1);
            self.held = Some(number as u16);
        } else {
            let (label, back) = (self.e.label(), self.e.label());
            let site = Site::new(first, self.mapping, 1, write, false);
            let offset = self.guess_numbers[number] * size_of::<Guess>() as u32;
            let argument = offset | (span as u32) << 16;
            if counted {
                let checks = stubs::guesses(self.key.mmu(), write) + offset_of!(GuessBank, checks) as i32;
                self.e.gs_decrement(checks + self.guess_numbers[number] as i32 * 4);
                let (label, back) = (self.e.label(), self.e.label());
                self.e.jcc(cc::B, label);
                self.e.bind(back);
                self.cold.push(Cold::Counted { label, back, argument, site });
            }
            self.e.gs_sub(S0, guess + offset_of!(Guess, page) as i32);
            if align > 1 {
                // Another page would not help.
                self.e.test8_imm(S0, align - 1);
                self.e.jcc(cc::NE, careful);
            }
            self.check_range(1, span, label);
            self.e.bind(back);
            let bank = self.key.mmu() as usize * 2 + write as usize;
            self.cold.push(Cold::Guess { label, back, careful, guess, argument, bank, site });
            // Looking for another page needs it.
            self.held = None;
        }
        // Flags stay saved: perhaps the next check needs them so too.
    }

    /// Goes to `failed` unless S0, an offset from a page, is aligned and `span` bytes fit behind it.
    fn check_range(&mut self, align: u8, span: i32, failed: Label) {
        if align > 1 {
            self.e.test8_imm(S0, align - 1);
            self.e.jcc(cc::NE, failed);
        }
        self.e.cmp_imm(S0, 4096 - span);
        self.e.jcc(cc::A, failed);
    }

    /// Puts a linear address into S0. Uses S1 if an index is not in a register.
    pub(super) fn address(&mut self, form: Form, displacement: i32) {
        if form.base == Register::RIP {
            // Decoded as if the page stood at 0, so the address is relative to the page.
            self.e.gs_load(S0, jit!(page));
            self.e.lea_disp32(S0, S0, displacement);
        } else {
            let base = gpr_number(form.base).map(|guest| self.read_register(guest, S0));
            let index = gpr_number(form.index).map(|guest| self.read_register(guest, S1));
            match (base, index) {
                (None, None) if form.is_wide() => self.e.mov_imm(S0, displacement as i64 as u64),
                (None, None) => self.e.mov_imm(S0, displacement as u32 as u64),
                _ => {
                    let index = index.map(|index| (index, form.scale));
                    self.e.lea(form.is_wide(), S0, base, index, displacement);
                }
            }
        }
        let segment = match form.segment {
            Register::FS => x86::state::seg::FS,
            Register::GS => x86::state::seg::GS,
            _ => return,
        };
        let at = offset_of!(Cpu, regs)
            + offset_of!(Regs, seg)
            + segment * size_of::<Segment>()
            + offset_of!(Segment, base);
        self.e.gs_add_keeping_flags(S0, S1, at as i32);
        self.held = None;
    }

    /// Where the soft TLB's array for reads or writes is, from the start of the vCPU.
    fn table(&self, write: bool) -> i32 {
        stubs::table(self.key.mmu(), write)
    }

    /// Leaves the byte offset of the soft TLB's entry for S0 in S1.
    fn table_index(&mut self) {
        if self.bmi2 {
            self.e.rorx(S1, S0, 8);
        } else {
            self.e.mov(S1, S0);
            self.e.shr(S1, 8);
        }
        self.e.and32_imm(S1, (crate::mmu::tlb::ENTRIES as u32 - 1) << 4);
    }

    /// Turns the linear address in S0 into a host address, or goes the slow way. Uses S1. `keep_flags`
    /// when flags matter. `after` is where an instruction goes on that the slow way has done.
    pub(super) fn look_up(&mut self, site: Site, keep_flags: bool, after: Label) {
        let keep_flags = keep_flags || self.exact_flags;
        let site = if self.key.careful() { site } else { site.with_guesses() };
        let (miss, back) = (self.e.label(), self.e.label());
        if keep_flags {
            self.save_flags();
        } else {
            self.restore_rax();
        }
        let table = self.table(site.writes());
        self.table_index();
        self.held = None;
        self.e.gs_sub_indexed(S0, S1, table);
        let align = if site.aligned() { site.len() as u8 } else { 1 };
        self.check_range(align, site.len() as i32, miss);
        self.e.gs_add_indexed(S0, S1, table + 8);
        self.e.bind(back);
        if keep_flags {
            self.restore_flags();
        }
        self.cold.push(Cold::Miss { label: miss, back, after, site, table, flags_saved: keep_flags });
    }
}
