//! Which guest registers live in which host registers.
//!
//! Between traces the mapping is *canonical*: RAX to R12 live in their namesakes except that RSP lives
//! in the host's R15 (the host needs its own RSP), and R13, R14 and R15 live in memory, because two host
//! registers are needed as scratch. Inside a trace up to three of the residents may change places with
//! those three, if the trace uses them more.

use super::emit::{Emit, host};
use crate::cpu::Cpu;
use crate::regs::{RSP, Regs};
use std::mem::offset_of;

/// First scratch register: linear address, then host address, of a memory operand; target of branches.
pub(crate) const S0: u8 = host::R14;
/// Second scratch register.
pub(crate) const S1: u8 = host::R13;

/// Where a guest register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loc {
    /// In a host register.
    Host(u8),
    /// In its slot of [`Regs::r`].
    Memory,
}

/// For R13, R14 and R15: the guest register whose place it takes, or [`Mapping::NOBODY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    displaced: [u8; 3],
}

impl Mapping {
    const NOBODY: u8 = 0xf;
    pub(crate) const CANONICAL: Mapping = Mapping { displaced: [Mapping::NOBODY; 3] };

    /// Chooses for a trace: `uses[r]` is how often it uses guest register `r`, `fixed` has a bit for
    /// each register that has to stay where it is (implicit operands).
    pub(crate) fn choose(uses: &[u32; 16], fixed: u16, gain_min: u32) -> Mapping {
        let mut mapping = Mapping::CANONICAL;
        if uses[13..].iter().all(|&uses| uses < gain_min) {
            return mapping;
        }
        let mut wanted: Vec<u8> = (13..16).collect();
        wanted.sort_by_key(|&guest| std::cmp::Reverse(uses[guest as usize]));
        let mut victims: Vec<u8> =
            (0..13u8).filter(|&guest| guest as usize != RSP && fixed & 1 << guest == 0).collect();
        victims.sort_by_key(|&guest| uses[guest as usize]);
        for (guest, victim) in wanted.into_iter().zip(victims) {
            if uses[guest as usize] >= uses[victim as usize] + gain_min {
                mapping.displaced[guest as usize - 13] = victim;
            }
        }
        mapping
    }

    /// As 12 bits.
    pub(crate) fn bits(self) -> u32 {
        self.displaced.iter().rev().fold(0, |bits, &victim| bits << 4 | victim as u32)
    }

    /// From [`Mapping::bits`].
    pub(crate) fn from_bits(bits: u32) -> Mapping {
        Mapping { displaced: [0, 4, 8].map(|shift| (bits >> shift & 0xf) as u8) }
    }

    pub(crate) fn is_canonical(self) -> bool {
        self == Mapping::CANONICAL
    }

    /// Where a guest register is in this mapping.
    pub(crate) fn loc(self, guest: u8) -> Loc {
        match guest {
            13.. => match self.displaced[guest as usize - 13] {
                Mapping::NOBODY => Loc::Memory,
                victim => Loc::Host(victim),
            },
            _ if guest as usize == RSP => Loc::Host(host::R15),
            _ if self.displaced.contains(&guest) => Loc::Memory,
            _ => Loc::Host(guest),
        }
    }

    /// Emits the change from the canonical mapping to this one. Touches no flags.
    pub(crate) fn emit_enter(self, e: &mut Emit) {
        for (guest, victim) in self.pairs() {
            e.gs_store(slot(victim), victim);
            e.gs_load(victim, slot(guest));
        }
    }

    /// Emits the change from this mapping to the canonical one. Touches no flags.
    pub(crate) fn emit_leave(self, e: &mut Emit) {
        for (guest, victim) in self.pairs() {
            e.gs_store(slot(guest), victim);
            e.gs_load(victim, slot(victim));
        }
    }

    fn pairs(self) -> impl Iterator<Item = (u8, u8)> {
        (13u8..16).zip(self.displaced).filter(|(_, victim)| *victim != Mapping::NOBODY)
    }

    /// Copies guest registers from saved host registers into the register file.
    pub(crate) fn to_file(self, host: &[u64; 16], regs: &mut Regs) {
        if self.is_canonical() {
            regs.r[..13].copy_from_slice(&host[..13]);
        } else {
            for guest in (0..13).filter(|guest| !self.displaced.contains(guest)) {
                regs.r[guest as usize] = host[guest as usize];
            }
            for (guest, victim) in self.pairs() {
                regs.r[guest as usize] = host[victim as usize];
            }
        }
        regs.r[RSP] = host[self::host::R15 as usize];
    }

    /// Copies guest registers from the register file into saved host registers.
    pub(crate) fn to_host(self, regs: &Regs, host: &mut [u64; 16]) {
        host[..13].copy_from_slice(&regs.r[..13]);
        for (guest, victim) in self.pairs() {
            host[victim as usize] = regs.r[guest as usize];
        }
        host[self::host::R15 as usize] = regs.r[RSP];
    }
}

/// Where a guest register's slot is, from the start of the vCPU.
pub(crate) fn slot(guest: u8) -> i32 {
    (offset_of!(Cpu, regs) + offset_of!(Regs, r) + guest as usize * 8) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_uses_r13_more_gets_it_a_register() {
        let mut uses = [1; 16];
        uses[13] = 9;
        uses[2] = 0;
        uses[3] = 0;
        let mapping = Mapping::choose(&uses, 1 << 2, 2);
        assert_eq!(
            (mapping.loc(13), mapping.loc(3), mapping.loc(2)),
            (Loc::Host(3), Loc::Memory, Loc::Host(2))
        );
        assert_eq!((mapping.loc(14), mapping.loc(4)), (Loc::Memory, Loc::Host(host::R15)));
        assert_eq!(Mapping::from_bits(mapping.bits()), mapping);
    }

    #[test]
    fn registers_survive_the_way_to_the_file_and_back() {
        let mut uses = [0; 16];
        uses[14] = 5;
        let mapping = Mapping::choose(&uses, 0, 2);
        let mut regs = Regs::new();
        for guest in 0..16 {
            regs.r[guest] = 100 + guest as u64;
        }
        let mut saved = [0; 16];
        mapping.to_host(&regs, &mut saved);
        let before = regs.r;
        for guest in 0..16u8 {
            if mapping.loc(guest) != Loc::Memory {
                regs.r[guest as usize] = 0;
            }
        }
        mapping.to_file(&saved, &mut regs);
        assert_eq!(regs.r, before);
    }
}
